"""The contract and its machinery; it knows no method by name."""
