"""Tasks whose model makes images from noise."""
