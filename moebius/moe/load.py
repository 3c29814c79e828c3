"""Measures of how even a layer's load is, from the number of tokens that each expert took."""

import math
from collections.abc import Sequence

DEAD_SHARE = 0.01  # an expert with less than this share of its layer's tokens is dead


def variation(counts: Sequence[int]) -> float:
    """Return the coefficient of variation: the counts' standard deviation divided by their mean.

    0 means an even load, and sqrt(E - 1) means that one of E experts took all tokens. Without
    tokens, the result is 0.
    """
    total = sum(counts)
    if not total:
        return 0.0
    mean = total / len(counts)
    return math.sqrt(sum((count - mean) ** 2 for count in counts) / len(counts)) / mean


def max_violation(counts: Sequence[int]) -> float:
    """Return how far the busiest expert is above the mean load, in units of the mean.

    From Wang et al. 2024 (arXiv 2408.15664), equation 4. Without tokens it is 0.
    """
    total = sum(counts)
    return max(counts) * len(counts) / total - 1 if total else 0.0


def dead_experts(counts: Sequence[int]) -> int:
    """Return the number of experts that took less than 1% of the layer's tokens."""
    total = sum(counts)
    return sum(count < DEAD_SHARE * total for count in counts) if total else len(counts)
