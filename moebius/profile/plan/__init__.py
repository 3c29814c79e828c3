"""Runs on GPUs that need not be there: memory, time, traffic, layout."""
