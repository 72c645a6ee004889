"""Tasks whose rows are images."""
