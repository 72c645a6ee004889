"""Measurements: `python -m benchmarks.NAME`; nothing here is part of the library."""
