"""Low-rank updates of frozen layers: how they reach the outputs and the gradients, one layer or several at once."""
