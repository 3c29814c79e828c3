"""What a machine has, what would spoil a run on it, and a test that training works."""
