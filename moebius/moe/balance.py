"""Losses that keep the experts' load even and the routers' logits small.

Each loss is computed from the statistics of the layers, so it works for one pass, for the sum of
several passes, and for counts that come from a larger batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.moe.statistics import LayerStats

OverBatch = Callable[[Tensor], Tensor]
"""Turns the counts of one micro-batch into those of the whole batch, as far as they are known.

Argument and result are vectors of the same layout: for each layer, the number of tokens that chose
each of its experts, followed by the layer's number of tokens.
"""


class Balancing(NamedTuple):
    """How to balance a micro-batch. A training step knows this; the model does not."""

    coefficients: Sequence[float] | Tensor
    """Weight of each layer's balance loss, in the order of the statistics."""
    over_batch: OverBatch | None = None
    """Returns the counts of the whole batch. None balances every micro-batch on its own."""


def balance_losses(stats: Sequence[LayerStats], over_batch: OverBatch | None = None) -> Tensor:
    """Return balance_M, the load-balancing loss of each layer, without its coefficient.

    This is the loss of the Switch Transformer (arXiv 2101.03961, eq. 4): E * sum_e(f_e * p_e),
    where f_e is the share of the tokens that chose expert e and p_e is the expert's mean
    probability. It is computed for each group of tokens and averaged over the groups. When the
    load is even, it equals the number of experts per token, as in transformers' Mixtral.

    With over_batch, the shares are those of the whole batch. The gradient still goes only through
    this micro-batch's probabilities, as it would in one large batch (Qiu et al. 2025, arXiv
    2501.11873).
    """
    num_experts = [layer.chosen_PE.shape[1] for layer in stats]
    chosen_MPE = _stacked([layer.chosen_PE for layer in stats])
    probability_MPE = _stacked([layer.probability_PE for layer in stats])
    tokens_M = torch.stack([layer.tokens for layer in stats])
    if over_batch is None:
        tokens_per_group_M = choosing_tokens_M = tokens_M / chosen_MPE.shape[1]
    else:
        counts_X = over_batch(_counts(stats))
        layers = counts_X.split([count + 1 for count in num_experts])
        chosen_MPE = _stacked([layer_X[None, :-1] for layer_X in layers])
        choosing_tokens_M = torch.stack([layer_X[-1] for layer_X in layers])
        probability_MPE = probability_MPE.sum(dim=1, keepdim=True)
        tokens_per_group_M = tokens_M
    share_MPE = chosen_MPE / choosing_tokens_M[:, None, None]
    mean_MPE = probability_MPE / tokens_per_group_M[:, None, None]
    # Filled on the device: a CUDA graph cannot contain a copy from the host.
    num_experts_M = torch.stack([mean_MPE.new_full((), count) for count in num_experts])
    return num_experts_M * (share_MPE * mean_MPE).sum(dim=2).mean(dim=1)


def z_losses(stats: Sequence[LayerStats]) -> Tensor:
    """Return z_M, each layer's router z-loss (ST-MoE, arXiv 2202.08906), without its coefficient.

    It is the mean over the tokens of the square of the logits' log-sum-exp.
    """
    squared_M = torch.stack([layer.squared_log_partition for layer in stats])
    return squared_M / torch.stack([layer.tokens for layer in stats])


def weighted_sum(losses_M: Tensor, coefficients: Sequence[float] | Tensor) -> Tensor:
    """Return the sum of the layers' losses, each times its coefficient, as a scalar.

    Raises ValueError if there is not one coefficient per layer.
    """
    if len(coefficients) != len(losses_M):
        raise ValueError(f"{len(coefficients)} coefficients for {len(losses_M)} layers' losses")
    if not isinstance(coefficients, Tensor):
        coefficients = _vector(list(coefficients), losses_M)
    return (coefficients * losses_M).sum()


def _counts(stats: Sequence[LayerStats]) -> Tensor:
    """Return the vector that `OverBatch` describes, from the statistics of one micro-batch."""
    layers = [torch.cat([layer.chosen_PE.sum(dim=0), layer.tokens[None]]) for layer in stats]
    return torch.cat(layers)


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """Return value_MPE from each layer's value_PE.

    Layers with fewer experts than others are padded with zeros: experts that do not exist have
    no load, and so add nothing to a loss.
    """
    widest = max(value_PE.shape[1] for value_PE in layers)
    return torch.stack(
        [
            F.pad(value_PE, (0, widest - value_PE.shape[1]))
            if value_PE.shape[1] < widest
            else value_PE
            for value_PE in layers
        ]
    )


def _vector(values: list[float], like: Tensor) -> Tensor:
    """Return the numbers as a tensor of like's dtype on its device, without waiting for it."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
