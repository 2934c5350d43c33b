"""The code that a worker process executes: `run_trial`, with training, metrics and checkpoints."""
