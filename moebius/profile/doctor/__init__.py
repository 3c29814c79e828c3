"""What a machine has, and a self-test."""
