"""Balance of a layer's experts from its counts. A layer without experts has an empty list of counts."""

import math
from collections.abc import Sequence
from typing import Any

from moebius.model.statistics import LayerStats

DEAD_SHARE = 0.01  # an expert with less than this share of its layer's tokens is dead

# of a layer without experts
NOTHING: dict[str, Any] = {
    "tokens_per_expert": [],
    "cv": 0.0,
    "max_violation": 0.0,
    "dead_experts": 0,
    "routing_entropy": None,
    "mean_gate": None,
    "dropped_share": 0.0,
    "unrouted_share": 0.0,
    "not_finite_logits": 0,
}


def layer_figures(stats: LayerStats) -> dict[str, Any]:
    """A layer's part of a metrics line, from its sums over a step's tokens, which must be on the CPU.

    routing_entropy is 0 to 1; mean_gate is over the assignments that an expert took (null without any); dropped_share and
    unrouted_share are of the assignments and of the tokens.
    """
    counts = [round(count) for count in stats.tokens_per_expert_E.tolist()]
    tokens, chosen = stats.tokens.item(), stats.chosen_PE.sum().item()
    return {
        "tokens_per_expert": counts,
        "cv": variation(counts),
        "max_violation": max_violation(counts),
        "dead_experts": dead_experts(counts),
        "routing_entropy": stats.entropy.item() / tokens,
        "mean_gate": stats.gate.item() / sum(counts) if sum(counts) else None,
        "dropped_share": stats.dropped.item() / chosen if chosen else 0.0,
        "unrouted_share": stats.unrouted.item() / tokens,
        "not_finite_logits": round(stats.not_finite.item()),
    }


def variation(counts: Sequence[int]) -> float:
    """CV: standard deviation over mean of the tokens per expert; 0 is even, sqrt(E - 1) is all on one."""
    total = sum(counts)
    if not total:
        return 0.0
    mean = total / len(counts)
    return math.sqrt(sum((count - mean) ** 2 for count in counts) / len(counts)) / mean


def max_violation(counts: Sequence[int]) -> float:
    """How far the busiest expert is above the mean, over the mean (Wang et al. 2024, arXiv 2408.15664, eq. 4)."""
    total = sum(counts)
    return max(counts) * len(counts) / total - 1 if total else 0.0


def dead_experts(counts: Sequence[int]) -> int:
    """Experts with less than 1% of the layer's tokens."""
    total = sum(counts)
    return sum(count < DEAD_SHARE * total for count in counts) if total else len(counts)
