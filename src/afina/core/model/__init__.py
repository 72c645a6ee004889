"""The face: `PeftModel` and its forward passes, saving and loading, auto classes, status, hot-swapping. Knows all of
the core."""
