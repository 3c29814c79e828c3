"""The training loss, and the parts that it is a sum of."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from moebius.config import ModelConfig
from moebius.moe.balance import Balancing, balance_losses, weighted_sum, z_losses
from moebius.moe.statistics import LayerStats

IGNORED = -100
"""A target that does not count in the loss."""


class Loss(NamedTuple):
    """The loss of a batch and its parts, on the device.

    balance_M, z_M and stats have one entry per layer with experts, and the MTP layer's comes last.
    """

    total: Tensor
    """What a training step minimizes: the weighted sum of all parts."""
    next_token: Tensor
    """Mean next-token loss in nats per token."""
    mtp: Tensor | None
    """Mean loss of multi-token prediction in nats per token. None without it."""
    balance_M: Tensor | None
    """Each layer's balance loss, without its coefficient. None without experts."""
    z_M: Tensor | None
    """Each layer's router z-loss, without its coefficient. None without experts."""
    stats: tuple[LayerStats, ...]
    """Routing statistics of each layer with experts."""


def total_loss(
    next_token: Tensor,
    mtp: Tensor | None,
    stats: tuple[LayerStats, ...],
    config: ModelConfig,
    balancing: Balancing | None = None,
) -> Loss:
    """Return the loss from its parts.

    Every layer's balance loss and z-loss count in full, so that a deep model balances each of its
    layers as strongly as a shallow one. `balancing` has the coefficients of the balance losses;
    None means aux_loss_coeff for every layer, over this micro-batch. Raises ValueError if it does
    not have one coefficient per layer.
    """
    total = next_token
    if mtp is not None:
        total = total + config.mtp_loss_coeff * mtp
    if not stats:
        return Loss(total, next_token, mtp, None, None, stats)
    balancing = balancing or Balancing([config.aux_loss_coeff] * len(stats))
    balance_M = balance_losses(stats, balancing.over_batch)
    z_M = z_losses(stats)
    total = total + weighted_sum(balance_M, balancing.coefficients)
    total = total + config.router_z_loss_coeff * z_M.sum()
    return Loss(total, next_token, mtp, balance_M, z_M, stats)


def cross_entropy(logits_BSV: Tensor, target_BS: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats, in float32. Targets of IGNORED do not count."""
    return F.cross_entropy(
        logits_BSV.flatten(0, 1).float(), target_BS.flatten(), ignore_index=IGNORED
    )


def documents(tokens_BL: Tensor, end_of_text: int) -> Tensor:
    """Return document_BL: for each token, how many documents have begun at or before it.

    A document begins with its separator, the token end_of_text.
    """
    return (tokens_BL == end_of_text).cumsum(dim=1)


def shifted_targets(
    tokens_BL: Tensor, offset: int, seq_len: int, document_BL: Tensor | None
) -> Tensor:
    """Return target_BS: for each of the first seq_len tokens, the token `offset` further on.

    With document_BL, a target counts if it lies in the token's own document or is the separator
    that ends the document. Targets beyond that are IGNORED, so that no loss depends on a
    neighboring document.
    """
    target_BS = tokens_BL[:, offset : offset + seq_len]
    if document_BL is None:
        return target_BS
    before_target_BS = document_BL[:, offset - 1 : offset - 1 + seq_len]
    return target_BS.masked_fill(before_target_BS != document_BL[:, :seq_len], IGNORED)
