"""The learning rate of a step, a pure function of it."""

import math

from moebius.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of the update that makes step `step` + 1: linear warm-up, then cosine or stable and a linear decay.

    The first update already moves (lr / warmup_steps); the last comes down to min_lr_fraction * lr. wsd: Hu et al. 2024,
    arXiv 2404.06395.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    lowest = config.lr * config.min_lr_fraction
    if config.schedule == "cosine":
        progress = _progress(step, config.warmup_steps, config.steps)
        return lowest + (config.lr - lowest) * (1 + math.cos(math.pi * progress)) / 2
    decay_start = max(config.warmup_steps, round(config.steps * (1 - config.decay_fraction)))
    return config.lr + (lowest - config.lr) * _progress(step, decay_start, config.steps)


def _progress(step: int, start: int, end: int) -> float:
    """0 at `start`, 1 at the last step before `end` and beyond."""
    return min(1.0, max(0.0, (step - start) / max(end - 1 - start, 1))) if step > start else 0.0
