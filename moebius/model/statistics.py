"""What a layer's router did with some tokens. Returned by the layer, never stored: recomputation cannot count it twice."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moebius.model.router import Router, Routing, balance_probability, summing_to_one, tokens_per_expert


class LayerStats(NamedTuple):
    """Sums over tokens, so that micro-batches, the MTP layer's passes and ranks add up; float32 and, but for the two that are
    losses, without a gradient. P groups of equal size: the balance loss is of each by itself."""

    tokens_per_expert_E: Tensor  # that the experts took
    chosen_PE: Tensor  # by how many tokens each was chosen, before capacity
    probability_PE: Tensor  # of the balance loss
    squared_log_partition: Tensor  # of the z-loss
    entropy: Tensor  # of a token's probabilities, over its greatest value, log E
    gate: Tensor  # of assignments that an expert took
    unrouted: Tensor  # tokens that no expert took
    dropped: Tensor  # assignments that full experts refused
    not_finite: Tensor  # logits
    tokens: Tensor

    def added(self, other: "LayerStats") -> "LayerStats":
        """Of both together."""
        return LayerStats(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def detached(self) -> "LayerStats":
        """Without the losses' graph, and all groups as one: what is kept of a micro-batch."""
        kept = (value.detach() for value in self)
        return LayerStats(*kept)._replace(
            chosen_PE=self.chosen_PE.sum(dim=0, keepdim=True),
            probability_PE=self.probability_PE.detach().sum(dim=0, keepdim=True),
        )


def layer_stats(router: Router, routing: Routing, groups: int) -> LayerStats:
    """Of one call of a layer."""
    E, T = router.num_experts, routing.logits_TE.shape[0]
    chosen_TK = router.chosen(routing)
    squared_log_partition = routing.logits_TE.logsumexp(dim=-1).square().sum()
    with torch.no_grad():
        taken_TK = routing.expert_TK < E
        taken_E = tokens_per_expert(routing.expert_TK, E)[0]
        chosen_PE = tokens_per_expert(chosen_TK, E, groups)
        entropy = torch.special.entr(summing_to_one(routing.probs_TE)).sum() / math.log(max(E, 2))
        figures = (
            entropy,
            routing.gate_TK.sum(),
            (~taken_TK.any(dim=-1)).sum(),
            chosen_PE.sum() - taken_E.sum(),
            (~routing.logits_TE.isfinite()).sum(),
            taken_E.new_full((), T),
        )
    return LayerStats(
        taken_E.float(),
        chosen_PE.float(),
        balance_probability(routing.probs_TE, groups),
        squared_log_partition,
        *(figure.float() for figure in figures),
    )


def summed(stats: Sequence[LayerStats]) -> LayerStats:
    """Of several calls of one layer."""
    total = stats[0]
    for each in stats[1:]:
        total = total.added(each)
    return total


def flat(stats: Sequence[LayerStats]) -> Tensor:
    """All figures of all layers in one vector: one transfer, one reduction."""
    return torch.cat([value.flatten() for layer in stats for value in layer])


def unflat(figures_X: Tensor, like: Sequence[LayerStats]) -> list[LayerStats]:
    """The inverse of `flat`."""
    values = iter(figures_X.split([value.numel() for layer in like for value in layer]))
    return [LayerStats(*(next(values).view(value.shape) for value in layer)) for layer in like]
