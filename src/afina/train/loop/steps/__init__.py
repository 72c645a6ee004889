"""What listens while a run takes its steps, and may end it: metrics, checks, signals. It knows the trainer alone."""
