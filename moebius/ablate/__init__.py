"""Variants of a configuration, compared: their speed, their memory and what they learn."""
