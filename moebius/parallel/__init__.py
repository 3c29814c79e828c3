"""How a model is laid out on the hardware: applied to the finished model from outside, in one visible order."""
