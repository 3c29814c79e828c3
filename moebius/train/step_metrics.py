"""Convert a step's tensors on the device to its metrics."""

import math
from dataclasses import replace

import torch

from moebius.config import Config
from moebius.cost.counts import training_flops_per_token
from moebius.moe.statistics import LayerStats, flat, unflat
from moebius.observe.metrics import LayerMetrics, StepMetrics, layer_metrics
from moebius.train.evaluate import Evaluation
from moebius.train.state import TrainState
from moebius.train.step import StepResult


def step_metrics(
    config: Config,
    state: TrainState,
    result: StepResult,
    tokens_per_second: float,
    matmul_ceiling: float,
    memory: float,
    evaluation: Evaluation | None = None,
) -> StepMetrics:
    """Return the metrics of the latest step. Waits for the device.

    matmul_ceiling is the device's rate of matrix products in FLOP/s; memory is in bytes.
    """
    layers = _layers(config, result)
    balance, z_loss = ([] if m is None else m.tolist() for m in _losses(result))
    metrics = StepMetrics(
        step=state.step,
        tokens=state.tokens,
        loss=result.loss.item(),
        lr=result.lr,
        grad_norm=result.grad_norm.item(),
        balance_loss=sum(balance) / max(1, len(balance)),
        z_loss=sum(z_loss) / max(1, len(z_loss)),
        mtp_loss=None if result.mtp_loss is None else result.mtp_loss.item(),
        mtp_losses=_mtp_losses(result),
        layers=layers,
        tokens_per_second=tokens_per_second,
        mfu=tokens_per_second * _flops_per_token(config, layers) / matmul_ceiling,
        memory_gb=memory / 1e9,
    )
    return metrics if evaluation is None else evaluated(metrics, evaluation)


def evaluated(metrics: StepMetrics, evaluation: Evaluation) -> StepMetrics:
    """Return the metrics with the figures of the evaluation after the step."""
    return replace(
        metrics,
        val_loss=evaluation.loss,
        val_bpb=evaluation.bits_per_byte,
        val_by_source=dict(evaluation.by_source),
    )


def _layers(config: Config, result: StepResult) -> list[LayerMetrics]:
    """Return one value per layer, the MTP layer's last; a dense layer has the defaults."""
    norms = [] if result.router_grad_norm_M is None else result.router_grad_norm_M.tolist()
    balance, z_loss = ([] if m is None else m.tolist() for m in _losses(result))
    stats = _on_the_cpu(result.stats)
    routed = iter(
        layer_metrics(*values) for values in zip(stats, norms, balance, z_loss, strict=True)
    )
    counts = list(config.model.experts_per_layer)
    if config.model.use_mtp:
        counts.append(counts[-1])
    return [next(routed) if count else LayerMetrics() for count in counts]


def _mtp_losses(result: StepResult) -> list[float | None]:
    """Return the loss of each MTP offset; None for an offset without a target."""
    losses = [] if result.mtp_loss_O is None else result.mtp_loss_O.tolist()
    return [None if math.isnan(loss) else loss for loss in losses]


def _losses(result: StepResult) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return result.balance_loss_M, result.z_loss_M


def _on_the_cpu(stats: list[LayerStats]) -> list[LayerStats]:
    """Return the statistics on the CPU, copied there in one transfer."""
    return unflat(flat(stats).cpu(), stats) if stats else []


def _flops_per_token(config: Config, layers: list[LayerMetrics]) -> float:
    """Return the FLOPs per token, given the number of experts that the tokens really had."""
    tokens = config.train.batch_size * config.train.seq_len
    experts_per_token = [sum(layer.tokens_per_expert) / tokens for layer in layers]
    return training_flops_per_token(config.model, config.train.seq_len, experts_per_token)
