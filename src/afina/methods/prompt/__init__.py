"""Methods that add virtual tokens.

For the smallest files, and where the weights must not be touched. They need large models and large learning rates, take
up some of the context, and cannot be merged.
"""
