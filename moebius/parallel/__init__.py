"""How a finished model is laid out on processes and devices, from outside, in one order."""
