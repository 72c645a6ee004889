"""Methods that add virtual tokens."""
