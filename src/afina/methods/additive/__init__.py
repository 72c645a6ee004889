"""Methods that add new modules around the frozen ones.

For keeping many tasks apart on one model: the modules are small and the weights stay as they are. Most of them stay in
the forward pass and cost a little at inference; IA³ can be merged.
"""
