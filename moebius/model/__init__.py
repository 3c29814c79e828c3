"""The transformer: every part has a readable reference, and each fast path is tested against it.

Names of tensors end in their shape: B batch, S sequence, L = S plus the tokens that the loss looks
ahead to, T = B * S tokens, D model dimension, V vocabulary, N query heads, G KV heads, H head
dimension, O offsets of multi-token prediction, and M layers with experts.
"""
