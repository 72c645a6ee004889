"""Programs that run where a target is installed, which may be another environment: they know the target and nothing of
afina, read one JSON file and write another."""
