"""Statistics of a layer's routing, as sums over tokens.

The layer returns its statistics and stores nothing, so the recomputation of activation
checkpointing cannot count a token twice.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moebius.moe.router import VANISHED, Router, Routing, uses_kernels


class LayerStats(NamedTuple):
    """Sums over the tokens of one layer, which add up over micro-batches, passes and processes.

    All have the dtype of the logits. Only probability_PE and squared_log_partition, from which the
    losses are computed, have a gradient. The tokens form P groups of equal size, each of which has
    its own balance loss.
    """

    tokens_per_expert_E: Tensor
    """Number of tokens that each expert took."""
    chosen_PE: Tensor
    """Number of tokens that chose each expert, before full experts dropped any."""
    probability_PE: Tensor
    """Sum of each expert's probability, where a token's probabilities sum to 1."""
    squared_log_partition: Tensor
    """Sum over the tokens of the squared log-sum-exp of the logits; its mean is the z-loss."""
    entropy: Tensor
    """Sum over the tokens of the entropy of their probabilities, divided by log E, its largest
    possible value."""
    gate: Tensor
    """Sum of the gates of the assignments that an expert took."""
    unrouted: Tensor
    """Number of tokens that no expert took."""
    dropped: Tensor
    """Number of assignments that full experts refused."""
    not_finite: Tensor
    """Number of logits that are infinite or NaN."""
    vanished: Tensor
    """Number of tokens whose highest score is so small that it has vanished (`VANISHED`)."""
    tokens: Tensor
    """Number of tokens."""

    def added(self, other: "LayerStats") -> "LayerStats":
        """Return the statistics of both sets of tokens together."""
        return LayerStats(*(own + others for own, others in zip(self, other, strict=True)))

    def detached(self) -> "LayerStats":
        """Return the statistics without their autograd graph, with all groups summed into one."""
        kept = LayerStats(*(value.detach() for value in self))
        if len(self.chosen_PE) == 1:
            return kept
        return kept._replace(
            chosen_PE=kept.chosen_PE.sum(dim=0, keepdim=True),
            probability_PE=kept.probability_PE.sum(dim=0, keepdim=True),
        )


def layer_stats(router: Router, routing: Routing, groups: int) -> LayerStats:
    """Return the statistics of one call of a layer.

    groups: the number of groups with a balance loss of their own, each of T / groups consecutive
    tokens.
    """
    if uses_kernels(routing.logits_TE, router.num_experts):
        return _stats_by_kernels(router, routing, groups)
    E, T = router.num_experts, routing.logits_TE.shape[0]
    probs_TE = router.distribution(routing)
    log_partition_T1 = routing.logits_TE.logsumexp(dim=-1, keepdim=True)
    with torch.no_grad():
        taken_TE = who_chose(routing.expert_TK, E)
        # Without a capacity, the experts take every token that chose them.
        has_capacity = router.record.has_capacity
        counted = (
            taken_TE,
            who_chose(router.chosen(routing), E) if has_capacity else taken_TE,
            torch.special.entr(probs_TE).sum(dim=-1, keepdim=True) / math.log(max(E, 2)),
            routing.gate_TK.sum(dim=-1, keepdim=True),
            ~taken_TE.any(dim=-1, keepdim=True),
            (~routing.logits_TE.isfinite()).sum(dim=-1, keepdim=True),
            routing.probs_TE.amax(dim=-1, keepdim=True) < VANISHED,
        )
    # All figures are columns of one matrix, which is summed once. A separate sum for each figure
    # would be a separate kernel in every layer.
    columns = [probs_TE, log_partition_T1.square(), *(part.type_as(probs_TE) for part in counted)]
    sums_PX = torch.cat(columns, dim=1).unflatten(0, (groups, -1)).sum(dim=1)
    probability_PE, squared_log_partition_P1, counts_PX = sums_PX.split([E, 1, 2 * E + 5], dim=1)
    taken_PE, chosen_PE, figures_P5 = counts_PX.detach().split([E, E, 5], dim=1)
    entropy, gate, unrouted, not_finite, vanished = figures_P5.sum(dim=0)
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
        vanished=vanished,
        tokens=taken_E.new_full((), T),
    )


def _stats_by_kernels(router: Router, routing: Routing, groups: int) -> LayerStats:
    """Return what `layer_stats` returns, in a few launches on a GPU."""
    from moebius.kernels.routing_sums import routing_sums

    probability_PE, squared_log_partition, chosen_PE, taken_E, figures = routing_sums(
        routing.logits_TE,
        routing.gate_TK,
        routing.expert_TK,
        router.bias_E,
        groups,
        router.config.has_sigmoid_scores,
        router.record.has_capacity,
        VANISHED,
    )
    # The figures are those from the entropy on, in the order of the fields.
    return LayerStats(taken_E, chosen_PE, probability_PE, squared_log_partition, *figures.unbind())


def who_chose(expert_TK: Tensor, num_experts: int) -> Tensor:
    """Return chosen_TE, whether a token has an expert. The id num_experts stands for no expert."""
    expert_E = torch.arange(num_experts, device=expert_TK.device)
    return (expert_TK[..., None] == expert_E).any(dim=1)


def summed(stats: Sequence[LayerStats]) -> LayerStats:
    """Return the sum of the statistics of several calls of one layer."""
    total = stats[0]
    for call in stats[1:]:
        total = total.added(call)
    return total


def flat(stats: Sequence[LayerStats]) -> Tensor:
    """Return all figures of all layers as one vector, which takes one transfer or reduction."""
    return torch.cat([value.flatten() for layer in stats for value in layer])


def unflat(figures_X: Tensor, like: Sequence[LayerStats]) -> list[LayerStats]:
    """Return the statistics that `flat` turned into this vector; `like` has their shapes."""
    values = iter(figures_X.split([value.numel() for layer in like for value in layer]))
    return [LayerStats(*(next(values).view(value.shape) for value in layer)) for layer in like]
