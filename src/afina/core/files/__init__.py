"""Bytes on disk: JSON and tensor files read within limits and published whole or not at all, and where on the hub they
lie. Knows errors only."""
