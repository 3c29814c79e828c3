"""The model: every part a readable reference, each fast path tested against it.

Tensor names end in their shape: B batch, S sequence, T = B*S tokens, D model dim, V vocab, N query heads, G KV heads,
H head dim, F expert hidden, E experts, K top-k, C capacity, R routed rows.
"""
