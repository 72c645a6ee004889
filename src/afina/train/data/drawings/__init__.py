"""Images that embedded data sets are made of."""
