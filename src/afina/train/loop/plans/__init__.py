"""What a run will take, before anything is loaded: its steps on tensors without data, and what follows."""
