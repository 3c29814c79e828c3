"""What a training step minimises, part by part."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.config import ModelConfig
from moebius.model.statistics import LayerStats

IGNORED = -100


# chosen_X of this micro-batch -> of the whole batch as far as it is known; X: all layers' experts end to end, and the tokens
OverBatch = Callable[[Tensor], Tensor]


class Loss(NamedTuple):
    """Nats per token. balance_M, z_M and `stats` have one entry per layer with experts; the MTP layer's comes last."""

    total: Tensor
    next_token: Tensor
    mtp: Tensor | None
    balance_M: Tensor | None
    z_M: Tensor | None
    stats: tuple[LayerStats, ...]


class Balancing(NamedTuple):
    """What a training step knows and a model does not: how strongly to balance each layer, and the rest of its batch."""

    coefficients: Sequence[float]
    over_batch: OverBatch | None = None


def total_loss(
    next_token: Tensor,
    mtp: Tensor | None,
    stats: tuple[LayerStats, ...],
    config: ModelConfig,
    balancing: Balancing | None = None,
) -> Loss:
    """Every layer's balance and z-loss counts with its full weight, so that depth does not weaken a layer's balancing."""
    total = next_token
    if mtp is not None:
        total = total + config.mtp_loss_coeff * mtp
    if not stats:
        return Loss(total, next_token, mtp, None, None, stats)
    coefficients = balancing.coefficients if balancing else [config.aux_loss_coeff] * len(stats)
    balance_M = balance_losses(stats, balancing.over_batch if balancing else None)
    z_M = torch.stack([layer.squared_log_partition for layer in stats]) / torch.stack([layer.tokens for layer in stats])
    coefficient_M = _row([coefficient for coefficient, _ in zip(coefficients, stats, strict=True)], balance_M)
    total = total + (coefficient_M * balance_M).sum() + config.router_z_loss_coeff * z_M.sum()
    return Loss(total, next_token, mtp, balance_M, z_M, stats)


def balance_losses(stats: Sequence[LayerStats], over_batch: OverBatch | None = None) -> Tensor:
    """balance_M: load-balancing loss of the Switch Transformer (arXiv 2101.03961, eq. 4), E * sum of share * mean probability,
    the mean over the groups. 1 per expert of a token when the load is even, as in transformers' Mixtral (k at top-k).

    With over_batch the shares are those of the whole batch; the gradient goes through this micro-batch's probabilities
    alone, as it would in one large batch (Qiu et al. 2025, arXiv 2501.11873).
    """
    experts = [layer.chosen_PE.shape[1] for layer in stats]
    chosen_MPE = _side_by_side([layer.chosen_PE for layer in stats])
    probability_MPE = _side_by_side([layer.probability_PE for layer in stats])
    tokens_M = torch.stack([layer.tokens for layer in stats])
    if over_batch is None:
        group_M = group_chosen_M = tokens_M / chosen_MPE.shape[1]
    else:
        counts_X = over_batch(torch.cat([torch.cat([layer.chosen_PE.sum(dim=0), layer.tokens[None]]) for layer in stats]))
        layers = counts_X.split([count + 1 for count in experts])
        chosen_MPE = _side_by_side([layer_X[None, :-1] for layer_X in layers])
        probability_MPE = probability_MPE.sum(dim=1, keepdim=True)
        group_M, group_chosen_M = tokens_M, torch.stack([layer_X[-1] for layer_X in layers])
    share_MPE = chosen_MPE / group_chosen_M[:, None, None]
    mean_MPE = probability_MPE / group_M[:, None, None]
    return _row([float(count) for count in experts], mean_MPE) * (share_MPE * mean_MPE).sum(dim=2).mean(dim=1)


def _side_by_side(layers: Sequence[Tensor]) -> Tensor:
    """value_MPE of each layer's value_PE; experts that a layer does not have have no load and add nothing."""
    widest = max(value_PE.shape[1] for value_PE in layers)
    return torch.stack([F.pad(v, (0, widest - v.shape[1])) if v.shape[1] < widest else v for v in layers])


def _row(values: list[float], like: Tensor) -> Tensor:
    """On its device, which is not waited for."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def cross_entropy(logits_BSV: Tensor, target_BS: Tensor) -> Tensor:
    """Mean next-token cross-entropy in float32; targets of IGNORED do not count."""
    return F.cross_entropy(logits_BSV.flatten(0, 1).float(), target_BS.flatten(), ignore_index=IGNORED)


def documents(tokens_BL: Tensor, end_of_text: int) -> Tensor:
    """document_BL: how many documents have begun so far. A document begins with its separator."""
    return (tokens_BL == end_of_text).cumsum(dim=1)


def shifted_targets(tokens_BL: Tensor, offset: int, seq_len: int, document_BL: Tensor | None) -> Tensor:
    """target_BS: the token `offset` ahead of each of the first `seq_len`.

    With documents given, a target counts inside the token's own document and at the separator that ends it, nowhere
    beyond: so no loss depends on a neighbouring document.
    """
    target_BS = tokens_BL[:, offset : offset + seq_len]
    if document_BL is None:
        return target_BS
    before_target_BS = document_BL[:, offset - 1 : offset - 1 + seq_len]
    return target_BS.masked_fill(before_target_BS != document_BL[:, :seq_len], IGNORED)
