"""Plan a run on GPUs that need not be present: memory, time, traffic, and the best layout."""
