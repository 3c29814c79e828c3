"""Products of the expert layer in bfloat16, written by hand for Hopper GPUs in Gluon.

Gluon is Triton's lower-level language, in which the kernel itself decides which warps do what. The
kernels in up.py and down_backward.py apply SwiGLU without dropout or its derivative, the one in
weight_gradient.py is for layers with SwiGLU, and the one in product.py is for any layer.
"""
