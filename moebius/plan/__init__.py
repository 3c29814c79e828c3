"""Planning a run on GPUs that need not be there: memory, time, traffic, and the best layout."""
