"""The mixture-of-experts layer: routers, experts and their backends, balance and statistics.

Nothing here depends on the model around the layer, so it can be used in any model.

Names of tensors end in their shape: B batch, S sequence, T = B * S tokens, D model dimension, E
experts, F hidden width of an expert, K slots for the experts of a token, R rows, P groups of
tokens, and M layers with experts. A token together with one of its slots is an assignment.
"""
