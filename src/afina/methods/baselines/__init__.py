"""What the other methods are compared with.

For much data and enough memory: all weights, their gradients and the optimizer's state must fit.
"""
