"""What a run will take, before anything is loaded: a rehearsal of its steps on tensors without data, and what follows."""
