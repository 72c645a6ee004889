"""What the other methods are compared with."""
