"""Lay a finished model out on processes and devices, from outside and in one fixed order."""
