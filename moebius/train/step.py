"""One optimizer step, and what it measured. Nothing here waits for the device."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moebius.config import TrainConfig
from moebius.model.loss import Loss
from moebius.model.moe import LayerStats
from moebius.train.common_start import share_expert_gradients
from moebius.train.optimizer import set_learning_rate
from moebius.train.schedule import learning_rate
from moebius.train.state import TrainState


class StepResult(NamedTuple):
    """Of a whole step, over all its micro-batches; tensors stay on the device."""

    loss: Tensor
    balance_loss: Tensor | None
    z_loss: Tensor | None
    mtp_loss: Tensor | None
    grad_norm: Tensor
    tokens_per_expert: list[Tensor]
    lr: float


def train_step(state: TrainState, tokens_BL: Tensor, end_of_text: int | None, config: TrainConfig) -> StepResult:
    """Forward, backward and update on one global batch; the state moves one step on."""
    model, optimizers = state.model, state.optimizers
    lr = learning_rate(state.step, config)
    set_learning_rate(optimizers, lr)
    parts: list[Loss] = []
    for micro_BL in tokens_BL.chunk(config.accumulation_steps):
        with autocast(config, tokens_BL.device):
            loss = model.loss(micro_BL, end_of_text)
        (loss.total / config.accumulation_steps).backward()
        parts.append(detached(loss))
    if state.step < config.common_start * config.steps:
        share_expert_gradients(model)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or torch.inf)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.tokens += config.batch_size * config.seq_len
    return StepResult(
        loss=torch.stack([part.next_token for part in parts]).mean(),
        balance_loss=_mean([part.balance for part in parts]),
        z_loss=_mean([part.z for part in parts]),
        mtp_loss=_mean([part.mtp for part in parts]),
        grad_norm=grad_norm,
        tokens_per_expert=[torch.stack(counts).sum(dim=0) for counts in zip(*map(_counts, parts), strict=True)],
        lr=lr,
    )


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
    stats = tuple(LayerStats(*(value.detach() for value in layer)) for layer in loss.stats)
    return Loss(*values, stats=stats)  # pyright: ignore[reportArgumentType]


def _counts(loss: Loss) -> list[Tensor]:
    return [layer.tokens_per_expert_E for layer in loss.stats]


def _mean(values: list[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return torch.stack(present).mean() if present else None
