"""New adapters from old ones: weighted, as a product of two factors, by the hundred from a folder; and taking adapters
away. Knows all of the core but the face."""
