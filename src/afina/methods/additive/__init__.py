"""Methods that add new modules around the frozen ones."""
