"""Which tokens of a long text a model reads: never more than the sequences it was trained on.

A model knows no longer distances than those of its training, and reads nonsense into them. While a
text fits into the context, the model reads all of it. When it is full, the older half is
forgotten, and the other half read again as a text of its own. Dropping one token at a time would
need to read everything again for every token; dropping only its keys and values would keep those
that were computed with the forgotten tokens, and fails once the first ones are gone (Xiao et al.
2023, arXiv 2309.17453).
"""


def window_start(num_tokens: int, context: int) -> int:
    """Return the index of the first token that is read to predict what follows `num_tokens`."""
    if num_tokens <= context:
        return 0
    dropped = max(1, context // 2)
    return -(-(num_tokens - context) // dropped) * dropped
