"""Measures of how even a layer's load is, from the number of tokens that each expert took."""

import math
from collections.abc import Sequence

DEAD_SHARE = 0.01
"""The founding document's limit: a dead expert has less than this share of the layer's load."""
DEAD_BELOW_EVEN = 10
"""With many experts, even a healthy share is below 1%: a dead expert's is also this many times
smaller than the even share."""
ENOUGH_TOKENS = 25
"""Tokens per expert above which chance hardly matters. Of experts that are equally likely to be
chosen, one in 200 million then has less than a tenth of its even share, and the CV is about 0.2
with 512 experts. With 4 tokens per expert, one healthy expert in 55 has none."""


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


def dead_share(num_experts: int, largest: float = DEAD_SHARE) -> float:
    """Return the share of a layer's load below which an expert is dead.

    It is the smaller of `largest` and a tenth of the even share. The load is the sum of the
    experts' tokens, in which a token counts once for each expert that took it.
    """
    return min(largest, 1 / (DEAD_BELOW_EVEN * num_experts))


def dead_experts(counts: Sequence[int]) -> int:
    """Return the number of experts with less than `dead_share` of the layer's load.

    Without tokens, all experts are dead.
    """
    total = sum(counts)
    if not total:
        return len(counts)
    fewest = dead_share(len(counts))
    return sum(count / total < fewest for count in counts)


def is_enough(counts: Sequence[int]) -> bool:
    """Return whether these are enough tokens to tell an uneven load from chance."""
    return sum(counts) >= ENOUGH_TOKENS * len(counts)
