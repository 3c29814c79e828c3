"""The learning rate of a step, as a pure function of the step."""

import math

from moebius.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of the update that makes step `step` + 1.

    A linear warm-up is followed by a cosine (`cosine`), or by a stable part and a linear decay
    (`wsd`: Hu et al. 2024, arXiv 2404.06395). The first update has the rate lr / warmup_steps, and
    the last has min_lr_fraction * lr, which any later updates keep. A warm-up that is longer than
    the run is cut off where the run ends: the last update has the rate lr * steps / warmup_steps,
    which is below lr, and there is no decay.
    """
    step = min(step, config.steps - 1)
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    lowest = config.lr * config.min_lr_fraction
    if config.schedule == "cosine":
        progress = _progress(step, config.warmup_steps, config.steps - 1)
        return lowest + (config.lr - lowest) * (1 + math.cos(math.pi * progress)) / 2
    decay_start = max(config.warmup_steps, round(config.steps * (1 - config.decay_fraction)))
    # The first step of the decay is already below the peak.
    progress = _progress(step, decay_start - 1, config.steps - 1)
    return config.lr + (lowest - config.lr) * progress


def _progress(step: int, first: int, last: int) -> float:
    """Return how far `step` is from `first` (0, also before it) to `last` (1)."""
    return max(0, step - first) / max(last - first, 1)
