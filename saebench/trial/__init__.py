"""What a worker process executes: `run_trial`, and the training, metrics and checkpoints it needs."""
