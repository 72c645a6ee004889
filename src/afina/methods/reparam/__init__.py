"""Methods that parametrise the weight update cheaply."""
