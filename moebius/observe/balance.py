"""Balance of a layer's experts from its counts. A layer without experts has an empty list of counts."""

import math
from collections.abc import Sequence

DEAD_SHARE = 0.01  # an expert with less than this share of its layer's tokens is dead


def variation(counts: Sequence[int]) -> float:
    """CV: standard deviation over mean of the tokens per expert; 0 is even, sqrt(E - 1) is all on one."""
    total = sum(counts)
    if not total:
        return 0.0
    mean = total / len(counts)
    return math.sqrt(sum((count - mean) ** 2 for count in counts) / len(counts)) / mean


def dead_experts(counts: Sequence[int]) -> int:
    """Experts with less than 1% of the layer's tokens."""
    total = sum(counts)
    return sum(count < DEAD_SHARE * total for count in counts) if total else len(counts)
