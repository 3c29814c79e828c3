"""Training: optimizer, schedule, checkpoints, and the loop over one resumable state."""
