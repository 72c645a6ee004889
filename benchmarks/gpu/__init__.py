"""One training step on a GPU: afina, its peers and the floor. `python -m benchmarks.gpu`."""
