"""What a layer's router did with some tokens. Returned by the layer, never stored: recomputation cannot count it twice."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moebius.model.router import Router, Routing, summing_to_one, who_chose


class LayerStats(NamedTuple):
    """Sums over tokens, so that micro-batches, the MTP layer's passes and ranks add up; in the logits' dtype and, but for the
    two that are losses, without a gradient. P groups of equal size: the balance loss is of each by itself."""

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
        kept = LayerStats(*(value.detach() for value in self))
        if len(self.chosen_PE) == 1:
            return kept
        return kept._replace(
            chosen_PE=kept.chosen_PE.sum(dim=0, keepdim=True), probability_PE=kept.probability_PE.sum(dim=0, keepdim=True)
        )


def layer_stats(router: Router, routing: Routing, groups: int) -> LayerStats:
    """Of one call of a layer.

    Whatever is added up is a column of one matrix, and the matrix is added up once: a sum of its own for each figure would
    be a kernel of its own, in every layer.
    """
    E, T = router.num_experts, routing.logits_TE.shape[0]
    probs_TE = summing_to_one(routing.probs_TE)
    log_partition_T1 = routing.logits_TE.logsumexp(dim=-1, keepdim=True)
    with torch.no_grad():
        taken_TE = who_chose(routing.expert_TK, E)
        is_switch = router.config.router_type == "switch"  # the only one that takes other than what was chosen
        counted = (
            taken_TE,
            who_chose(router.chosen(routing), E) if is_switch else taken_TE,
            torch.special.entr(probs_TE).sum(dim=-1, keepdim=True) / math.log(max(E, 2)),
            routing.gate_TK.sum(dim=-1, keepdim=True),
            ~taken_TE.any(dim=-1, keepdim=True),
            (~routing.logits_TE.isfinite()).sum(dim=-1, keepdim=True),
        )
    columns_TX = torch.cat([probs_TE, log_partition_T1.square(), *(each.type_as(probs_TE) for each in counted)], dim=1)
    sums_PX = columns_TX.unflatten(0, (groups, -1)).sum(dim=1)
    probability_PE, squared_log_partition_P1, counts_PX = sums_PX.split([E, 1, 2 * E + 4], dim=1)
    taken_PE, chosen_PE, figures_P4 = counts_PX.detach().split([E, E, 4], dim=1)
    entropy, gate, unrouted, not_finite = figures_P4.sum(dim=0)
    taken_E = taken_PE.sum(dim=0)
    return LayerStats(
        tokens_per_expert_E=taken_E,
        chosen_PE=chosen_PE,
        probability_PE=probability_PE,
        squared_log_partition=squared_log_partition_P1.sum(),
        entropy=entropy,
        gate=gate,
        unrouted=unrouted,
        dropped=chosen_PE.sum() - taken_E.sum(),
        not_finite=not_finite,
        tokens=taken_E.new_full((), T),
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
