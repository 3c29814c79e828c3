"""Bytes of one number in each dtype that a training step uses."""

FLOAT32 = 4
"""Weights, their gradients, the optimizer's moments and the residual stream."""
BFLOAT16 = 2
"""Inputs and results of matrix products on a GPU."""
INT64 = 8
"""Indices, such as those of a token's experts."""
