"""Examine a machine: what it has, what would harm a run on it, and whether training works."""
