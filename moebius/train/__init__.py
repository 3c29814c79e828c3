"""Training: optimizers, schedule, checkpoints, and the loop, around one resumable state."""
