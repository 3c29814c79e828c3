"""Variants of a configuration, compared: speed, memory, what they learn."""
