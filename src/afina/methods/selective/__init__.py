"""Methods that train some of the model's own parameters; as adapters, on copies, so that the base keeps its bits."""
