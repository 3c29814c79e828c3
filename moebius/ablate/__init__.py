"""Compare variants of a configuration: their speed, their memory and what they learn."""
