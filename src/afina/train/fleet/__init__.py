"""Several runs on one base at once: each is what it is alone, and their rows share passes through the base."""
