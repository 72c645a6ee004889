"""Fast paths: the same mathematics in fewer passes over memory. Each has a plain formula that tests hold it to."""
