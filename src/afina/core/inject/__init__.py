"""Which layers a config adapts, and putting adapters there. Knows hosts and what is below them."""
