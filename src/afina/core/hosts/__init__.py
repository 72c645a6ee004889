"""One layer and the adapters on it: the contract of an adapter, the view that it gets, the host, and all hosts of a
model at once. Knows layers and virtual tokens."""
