"""Triton kernels for the expert layer, and the autograd function that runs them.

Every token has K slots, and each slot may hold one expert. A token together with one of its slots
is an assignment; its number is token * K + slot. The kernels work on rows: the R = T * K
assignments sorted by expert, so that the rows of one expert are adjacent. Assignments without an
expert carry the id E (the number of experts), so their rows come last.

Letters in the names of tensors: T tokens, K slots per token, E experts, D model dimension, F
hidden width of an expert, R rows, and P planes of pre-activations. Plane 0 is the up projection;
with SwiGLU there is a second plane, the gate projection.
"""
