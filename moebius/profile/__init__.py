"""Where the time of a training step goes, compared with the least that it could cost."""
