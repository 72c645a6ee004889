"""The devices of this machine: which there are, on which one a model runs and in what, what memory it has."""
