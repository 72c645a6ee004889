"""Tasks whose rows are sounds."""
