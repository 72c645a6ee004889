"""A frozen layer as a linear operator, whatever its kind and storage: read, write, apply. Knows errors only."""
