"""Virtual tokens: what makes them, and where they go in inputs, masks, positions and caches. Knows configs."""
