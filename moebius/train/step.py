"""One optimizer step, and what it measured. Nothing here waits for the device."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moebius.config import TrainConfig
from moebius.model.loss import Balancing, Loss
from moebius.model.statistics import LayerStats, flat, summed, unflat
from moebius.model.transformer import Transformer, routed_layers
from moebius.parallel.ranks import sum_over_ranks
from moebius.train.common_start import share_expert_gradients
from moebius.train.optimizer import set_learning_rate, skip_update_if
from moebius.train.schedule import learning_rate
from moebius.train.state import TrainState, aux_coefficients


class StepResult(NamedTuple):
    """Of a whole step, over all its micro-batches and ranks; tensors stay on the device. M: layers with experts."""

    loss: Tensor
    mtp_loss: Tensor | None
    balance_loss_M: Tensor | None
    z_loss_M: Tensor | None
    grad_norm: Tensor
    router_grad_norm_M: Tensor | None
    stats: list[LayerStats]
    is_skipped: Tensor
    lr: float


def train_step(state: TrainState, tokens_BL: Tensor, end_of_text: int | None, config: TrainConfig) -> StepResult:
    """Forward, backward and update on one global batch; the state moves one step on.

    A loss or gradient that is not finite on any rank leaves weights, optimizers and biases as they are, on every rank.
    """
    model, optimizers = state.model, state.optimizers
    lr = learning_rate(state.step, config)
    set_learning_rate(optimizers, lr)
    is_global = model.config.aux_loss_scope == "global_batch"
    balancing = Balancing(aux_coefficients(state), CountsSoFar() if is_global else None)
    parts: list[Loss] = []
    for micro_BL in tokens_BL.chunk(config.accumulation_steps):
        with autocast(config, tokens_BL.device):
            part = model.loss(micro_BL, end_of_text, balancing)
        (part.total / config.accumulation_steps).backward()
        parts.append(detached(part))
    if state.step < config.common_start * config.steps:
        share_expert_gradients(model)
    router_grad_norm_M = router_grad_norms(model)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or torch.inf)
    loss = torch.stack([part.next_token for part in parts]).mean()
    is_broken = sum_over_ranks((~(loss + grad_norm).isfinite()).float()) > 0
    skip_update_if(is_broken, optimizers)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    stats = over_the_batch(parts)
    if model.config.router_bias_rate:
        shift_biases(model, stats, is_broken)
    state.step += 1
    state.batch += 1
    state.tokens += config.batch_size * config.seq_len
    return StepResult(
        loss=loss,
        mtp_loss=_mean([part.mtp for part in parts]),
        balance_loss_M=_mean([part.balance_M for part in parts]),
        z_loss_M=_mean([part.z_M for part in parts]),
        grad_norm=grad_norm,
        router_grad_norm_M=router_grad_norm_M,
        stats=stats,
        is_skipped=is_broken,
        lr=lr,
    )


class CountsSoFar:
    """Counts of a step's micro-batches up to the present one, over all ranks. What is still to come is not known: the first
    of n micro-batches is balanced over an n-th of the batch, the last over all of it."""

    def __init__(self):
        self.counts_X: Tensor | None = None

    def __call__(self, counts_X: Tensor) -> Tensor:
        counts_X = sum_over_ranks(counts_X)
        self.counts_X = counts_X if self.counts_X is None else self.counts_X + counts_X
        return self.counts_X


def over_the_batch(parts: list[Loss]) -> list[LayerStats]:
    """Each layer's statistics over the step's micro-batches and ranks."""
    stats = [summed(layer) for layer in zip(*(part.stats for part in parts), strict=True)]
    return unflat(sum_over_ranks(flat(stats)), stats) if stats else []


def router_grad_norms(model: Transformer) -> Tensor | None:
    """Norm of each router's gradient, before clipping."""
    norms = [layer.router.weight_ED.grad.norm() for layer in routed_layers(model) if layer.router.weight_ED.grad is not None]
    return torch.stack(norms) if norms else None


def shift_biases(model: Transformer, stats: list[LayerStats], is_skipped: Tensor | None = None) -> None:
    """Loss-free balancing, once per optimizer step and from the whole batch's counts."""
    for layer, figures in zip(routed_layers(model), stats, strict=True):
        layer.router.shift_bias(figures.chosen_PE[0], model.config.router_bias_rate, is_skipped)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 matrix products where the configuration (or, on auto, the device) says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=matmul_dtype(config, device) == torch.bfloat16)


def matmul_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """auto is bfloat16 on a GPU; CPUs mostly emulate it, slowly."""
    is_bfloat16 = config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda")
    return torch.bfloat16 if is_bfloat16 else torch.float32


def detached(loss: Loss) -> Loss:
    """The figures without their graph, so that a micro-batch's activations are freed."""
    values = [value.detach() if isinstance(value, Tensor) else value for value in loss[:-1]]
    return Loss(*values, stats=tuple(layer.detached() for layer in loss.stats))  # pyright: ignore[reportArgumentType]


def _mean(values: list[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return torch.stack(present).mean(dim=0) if present else None
