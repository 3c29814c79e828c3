"""What a training step minimises, part by part."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from moebius.config import ModelConfig
from moebius.model.moe import LayerStats

IGNORED = -100


class Loss(NamedTuple):
    """Nats per token. `stats` has one entry per layer with experts; the MTP layer's comes last."""

    total: Tensor
    next_token: Tensor
    mtp: Tensor | None
    balance: Tensor | None
    z: Tensor | None
    stats: tuple[LayerStats, ...]


def total_loss(next_token: Tensor, mtp: Tensor | None, stats: tuple[LayerStats, ...], config: ModelConfig) -> Loss:
    """Every layer's balance and z-loss counts with its full weight, so that depth does not weaken a layer's balancing."""
    total = next_token
    balance = z = None
    if mtp is not None:
        total = total + config.mtp_loss_coeff * mtp
    if stats:
        balance_sum = sum_of([layer.balance_loss for layer in stats])
        z_sum = sum_of([layer.z_loss for layer in stats])
        total = total + config.aux_loss_coeff * balance_sum + config.router_z_loss_coeff * z_sum
        balance, z = balance_sum / len(stats), z_sum / len(stats)
    return Loss(total, next_token, mtp, balance, z, stats)


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


def sum_of(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
