"""Items laid out for training: several in a sequence, or those of like length together."""
