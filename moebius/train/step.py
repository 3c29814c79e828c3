"""One optimizer step and its measurements. Nothing here waits for the device."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moebius.config import ModelConfig, TrainConfig
from moebius.hardware.precision import autocast
from moebius.model.loss import Divisors, Loss, all_targets, documents
from moebius.model.transformer import Transformer, routed_layers
from moebius.moe.balance import Balancing
from moebius.moe.statistics import LayerStats, flat, unflat
from moebius.parallel.placement import Placement
from moebius.parallel.ranks import num_ranks, sum_over_ranks
from moebius.train.common_start import has_equal_experts, share_expert_gradients
from moebius.train.optimizer import set_learning_rate, skip_update_if
from moebius.train.schedule import learning_rate
from moebius.train.state import TrainState, aux_coefficients


class StepResult(NamedTuple):
    """The measurements of a whole step, over all its micro-batches and processes, on the device.

    M is the number of layers with experts, including the MTP layer.
    """

    loss: Tensor
    """Mean next-token loss in nats per token."""
    mtp_loss: Tensor | None
    """Loss of multi-token prediction, the mean over its offsets; None without it."""
    balance_loss_M: Tensor | None
    """Each layer's balance loss, without its coefficient; None without experts."""
    z_loss_M: Tensor | None
    """Each layer's router z-loss, without its coefficient; None without experts."""
    grad_norm: Tensor
    """Norm of the whole gradient before clipping."""
    router_grad_norm_M: Tensor | None
    """Norm of each router's gradient before clipping; None without experts."""
    stats: list[LayerStats]
    """Routing statistics of each layer with experts."""
    is_skipped: Tensor
    """Whether the update was skipped because the loss or the gradient was not finite."""
    lr: float
    """Learning rate of the update."""
    mtp_loss_O: Tensor | None = None
    """Mean loss of each offset of multi-token prediction, NaN for an offset without a target in
    the whole step; None without multi-token prediction."""


def train_step(
    state: TrainState,
    tokens_BL: Tensor,
    separator: int | None,
    config: TrainConfig,
    lr: float | None = None,
    run: "ForwardBackward | None" = None,
) -> StepResult:
    """Run forward, backward and the update on this process's part of a batch.

    separator is the token that each document begins with, for attention that stays inside a
    document; None lets attention cross documents. lr is the learning rate; by default it is that
    of `config` at this step. run computes each micro-batch; by default it is `forward_backward`.
    The state advances by one step. If the loss or gradient of any process is not finite, no
    process changes its weights, optimizers or biases.
    """
    model, optimizers, run = state.model, state.optimizers, run or forward_backward
    lr = learning_rate(state.step, config, state.tokens) if lr is None else lr
    set_learning_rate(optimizers, lr)
    is_global = model.config.aux_loss_scope == "global_batch"
    balancing = Balancing(aux_coefficients(state), CountsSoFar() if is_global else None)
    divisors = divisors_of(tokens_BL, separator, model.config)
    parts: list[Loss] = []
    batches = micro_batches(tokens_BL, config)
    for number, micro_BL in enumerate(batches, start=1):
        if number == len(batches):
            state.placement.begin_sums()
        parts.append(run(Pass(model, micro_BL, separator, balancing, divisors, config)))
    state.placement.sum_gradients(model)
    if has_equal_experts(state.step, config):
        share_expert_gradients(model)
    router_grad_norm_M = router_grad_norms(model, state.placement)
    grad_norm = state.placement.clip_gradients(model, config.grad_clip or torch.inf)
    loss = sum_over_ranks(torch.stack([part.next_token for part in parts]).sum())
    is_broken = sum_over_ranks((~(loss + grad_norm).isfinite()).float()) > 0
    skip_update_if(is_broken, optimizers)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    stats = over_the_batch(parts)
    if model.config.router_bias_rate:
        shift_biases(model, stats, is_broken)
    state.step += 1
    state.sequences += config.batch_size
    state.tokens += config.batch_size * config.seq_len
    return StepResult(
        loss=loss,
        mtp_loss=_sum([part.mtp for part in parts]),
        balance_loss_M=_sum([part.balance_M for part in parts]),
        z_loss_M=_sum([part.z_M for part in parts]),
        grad_norm=grad_norm,
        router_grad_norm_M=router_grad_norm_M,
        stats=stats,
        is_skipped=is_broken,
        lr=lr,
        mtp_loss_O=_sum([part.mtp_O for part in parts], divisors.targets_O[1:] == 0),
    )


def micro_batches(tokens_BL: Tensor, config: TrainConfig) -> Sequence[Tensor]:
    """Return the micro-batches of this process's part of a batch.

    Every process has equally many, also if some have a sequence more than others, because in some
    layouts they wait for each other in every pass.
    """
    most_sequences = -(-config.batch_size // num_ranks())
    passes = -(-most_sequences // (config.micro_batch_size or most_sequences))
    parts = tokens_BL.chunk(passes)
    return parts if len(parts) == passes else tokens_BL.tensor_split(passes)


class Pass(NamedTuple):
    """What a forward and backward pass computes with."""

    model: Transformer
    micro_BL: Tensor
    separator: int | None
    balancing: Balancing
    divisors: Divisors
    config: TrainConfig


def forward_backward(given: Pass) -> Loss:
    """Run a micro-batch forward and backward, and return its figures without their graph."""
    model, micro_BL, separator, balancing, divisors, config = given
    with autocast(config, micro_BL.device):
        part = model.loss(micro_BL, separator, balancing, divisors)
    part.total.backward()
    return detached(part)


ForwardBackward = Callable[[Pass], Loss]
"""A function that does what `forward_backward` does."""


def divisors_of(tokens_BL: Tensor, separator: int | None, config: ModelConfig) -> Divisors:
    """Return the counts of targets and sequences of the whole step, over all processes.

    They follow from the token ids, so they are known before the first forward pass.
    """
    document_BL = None if separator is None else documents(tokens_BL, separator)
    counts = Divisors.of(all_targets(tokens_BL, config, document_BL))
    counts_X = sum_over_ranks(torch.cat([counts.targets_O, counts.sequences[None]]))
    return Divisors(counts_X[:-1], counts_X[-1])


class CountsSoFar:
    """Sums the counts of a step's micro-batches up to the current one, over all processes.

    The counts of later micro-batches are not known yet: the first of n micro-batches is balanced
    over an n-th of the batch, and the last over all of it.
    """

    def __init__(self) -> None:
        self.counts_X: Tensor | None = None

    def __call__(self, counts_X: Tensor) -> Tensor:
        counts_X = sum_over_ranks(counts_X)
        self.counts_X = counts_X if self.counts_X is None else self.counts_X + counts_X
        return self.counts_X


def over_the_batch(parts: list[Loss]) -> list[LayerStats]:
    """Return each layer's statistics, summed over the step's micro-batches and processes."""
    if not parts[0].stats:
        return []
    figures_X = flat(parts[0].stats)
    for part in parts[1:]:
        figures_X = figures_X + flat(part.stats)
    return unflat(sum_over_ranks(figures_X), parts[0].stats)


def router_grad_norms(model: Transformer, placement: Placement) -> Tensor | None:
    """Return the norm of each router's gradient, or None if no router has one."""
    gradients = [layer.router.weight_ED.grad for layer in routed_layers(model)]
    present = [("router", gradient) for gradient in gradients if gradient is not None]
    return placement.norms(present) if present else None


def shift_biases(
    model: Transformer, stats: list[LayerStats], is_skipped: Tensor | None = None
) -> None:
    """Apply loss-free balancing with the whole batch's counts, once per optimizer step."""
    for layer, layer_stats in zip(routed_layers(model), stats, strict=True):
        chosen_E = layer_stats.chosen_PE[0]
        layer.router.shift_bias(chosen_E, model.config.router_bias_rate, is_skipped)


def detached(loss: Loss) -> Loss:
    """Return the figures without their graph, so that a micro-batch's activations are freed."""
    values = [value.detach() if isinstance(value, Tensor) else value for value in loss[:-1]]
    stats = tuple(layer.detached() for layer in loss.stats)
    return Loss(*values, stats=stats)  # pyright: ignore[reportArgumentType]


def _sum(values: list[Tensor | None], is_unknown: Tensor | None = None) -> Tensor | None:
    """Return the sum over micro-batches and processes, or None if the values are None.

    The sum is NaN where is_unknown is true.
    """
    present = [value for value in values if value is not None]
    if not present:
        return None
    total = sum_over_ranks(torch.stack(present).sum(dim=0))
    return total if is_unknown is None else total.masked_fill(is_unknown, torch.nan)
