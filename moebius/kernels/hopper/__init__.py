"""The two products with costly epilogues, written by hand for Hopper GPUs in Gluon.

Gluon is Triton's lower-level language, in which the kernel itself decides which warps do what.
Both kernels are for SwiGLU in bfloat16 without dropout.
"""
