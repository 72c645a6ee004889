"""Methods that parametrise the weight update cheaply.

For most tasks: close to full fine-tuning with about a hundredth of its trained parameters, and nearly all merge into
the weights, so that they cost nothing at inference. LoRA is where to begin.
"""
