"""Methods that train some of the model's own parameters; as adapters, on copies, so that the base keeps its bits.

For tasks close to what the model knows already: nothing is added to the forward pass, and what is trained is chosen by
its place (the last layers, biases, norms, single weights).
"""
