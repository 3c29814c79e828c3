"""What a run shows: balance of the experts, metrics on disk, the terminal, the device's measured ceiling."""
