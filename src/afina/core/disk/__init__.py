"""Adapters on disk: names, checks, fingerprint of the base, model card; the only door in and the only door out. Knows
hosts and injection."""
