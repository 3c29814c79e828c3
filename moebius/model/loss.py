"""The training loss, and the parts that it is a sum of."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.config import MTP_OFFSETS, ModelConfig
from moebius.hardware.precision import wide
from moebius.moe.balance import Balancing, balance_losses, weighted_sum, z_losses
from moebius.moe.statistics import LayerStats

IGNORED = -100
"""A target that does not count in the loss."""


class Divisors(NamedTuple):
    """The counts that sums over tokens and sequences are divided by, on the device.

    A training step counts over all of its micro-batches and processes. Each micro-batch's loss is
    then its part of the step's loss, and the parts add up to the loss of one large batch. The mean
    of the micro-batches' means would weigh each token by how few targets its micro-batch has.
    """

    targets_O: Tensor
    """Number of targets that count, for each of the offsets of `offsets`."""
    sequences: Tensor
    """Number of sequences."""

    @classmethod
    def of(cls, targets: list[Tensor]) -> "Divisors":
        """Return the counts of these targets: target_BS for each offset."""
        counts = [(target_BS != IGNORED).sum() for target_BS in targets]
        return cls(torch.stack(counts), counts[0].new_full((), len(targets[0])))


class Loss(NamedTuple):
    """The loss of a batch and its parts, on the device.

    With the divisors of a step, every figure is what the batch adds to the step's figure.
    balance_M, z_M and stats have one entry per layer with experts, and the MTP layer's comes last.
    """

    total: Tensor
    """What a training step minimizes: the weighted sum of all parts."""
    next_token: Tensor
    """Mean next-token loss in nats per token."""
    mtp: Tensor | None
    """Loss of multi-token prediction: the mean of mtp_O. None without it."""
    mtp_O: Tensor | None
    """Mean loss of each offset of multi-token prediction in nats per token; 0 for an offset
    without a target. None without multi-token prediction."""
    balance_M: Tensor | None
    """Each layer's balance loss, without its coefficient. None without experts."""
    z_M: Tensor | None
    """Each layer's router z-loss, without its coefficient. None without experts."""
    stats: tuple[LayerStats, ...]
    """Routing statistics of each layer with experts."""


def total_loss(
    next_token: Tensor,
    mtp_O: Tensor | None,
    stats: tuple[LayerStats, ...],
    config: ModelConfig,
    balancing: Balancing | None = None,
    times: Tensor | float = 1.0,
) -> Loss:
    """Return the loss from its parts.

    `times` is how many times as many sequences the step has as this batch; the balance losses and
    z-losses, which are means over this batch, are divided by it. next_token and mtp_O are divided
    by the step's counts already.

    Every layer's balance loss and z-loss count in full, so that a deep model balances each of its
    layers as strongly as a shallow one. `balancing` has the coefficients of the balance losses;
    None means aux_loss_coeff for every layer, over this micro-batch. Raises ValueError if it does
    not have one coefficient per layer.
    """
    total = next_token
    mtp = None
    if mtp_O is not None:
        mtp = mtp_O.mean()
        total = total + config.mtp_loss_coeff * mtp
    if not stats:
        return Loss(total, next_token, mtp, mtp_O, None, None, stats)
    balancing = balancing or Balancing([config.aux_loss_coeff] * len(stats))
    balance_M = balance_losses(stats, balancing.over_batch) / times
    z_M = z_losses(stats) / times
    total = total + weighted_sum(balance_M, balancing.coefficients)
    total = total + config.router_z_loss_coeff * z_M.sum()
    return Loss(total, next_token, mtp, mtp_O, balance_M, z_M, stats)


def cross_entropy(
    logits_BSV: Tensor, target_BS: Tensor, num_targets: Tensor | None = None
) -> Tensor:
    """Return the sum of the targets' cross-entropies in nats, divided by num_targets.

    Without num_targets, it is divided by the number of targets that count, and is 0 if there are
    none. Targets of IGNORED do not count. The result is float32 or, for float64 logits, float64.
    Any other target that is not one of the V ids is an error.
    """
    if num_targets is None:
        num_targets = (target_BS != IGNORED).sum()
    total = F.cross_entropy(
        wide(logits_BSV.flatten(0, 1)),
        target_BS.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return total / num_targets.clamp(min=1)


def offsets(config: ModelConfig) -> tuple[int, ...]:
    """Return how many tokens ahead of the current one the targets are; the next token is first."""
    return (1, *MTP_OFFSETS) if config.use_mtp else (1,)


def all_targets(
    tokens_BL: Tensor, config: ModelConfig, document_BL: Tensor | None
) -> list[Tensor]:
    """Return target_BS for each of the model's offsets, as `shifted_targets` does."""
    ahead = offsets(config)
    S = tokens_BL.shape[1] - max(ahead)
    return [shifted_targets(tokens_BL, offset, S, document_BL) for offset in ahead]


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
