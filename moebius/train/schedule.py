"""The learning rate of a step, as a pure function of the step or of the tokens."""

import math

from moebius.config import TrainConfig


def learning_rate(step: int, config: TrainConfig, tokens: int = 0) -> float:
    """Return the rate of the update that makes step `step` + 1, after `tokens` tokens.

    In a run with phases it depends on the tokens, and otherwise on the step.

    A linear warm-up is followed by a cosine (`cosine`), or by a stable part and a linear decay
    (`wsd`: Hu et al. 2024, arXiv 2404.06395). The first update has the rate lr / warmup_steps, and
    the last has min_lr_fraction * lr, which any later updates keep. A warm-up that is longer than
    the run is cut off where the run ends: the last update has the rate lr * steps / warmup_steps,
    which is below lr, and there is no decay.
    """
    if config.phases:
        return _rate_in_phase(tokens, config)
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


def _rate_in_phase(tokens: int, config: TrainConfig) -> float:
    """Return the rate of the step that begins after that many tokens.

    It goes from the rate that the phase before ended with, which the last step of that phase had,
    to the phase's own, which its last step has. Before the first phase it is 0.
    """
    number = config.phase_at(tokens)
    phase, before = config.phases[number], config.phases[:number]
    begin = before[-1].until if before else 0
    start = before[-1].lr_fraction if before else 0.0
    done = (tokens + config.tokens_per_step(number) - begin) / (phase.until - begin)
    progress = {
        "constant": 1.0,
        "linear": min(1.0, done),
        "cosine": (1 - math.cos(math.pi * min(1.0, done))) / 2,
    }[phase.schedule]
    return config.lr * (start + (phase.lr_fraction - start) * progress)


def _progress(step: int, first: int, last: int) -> float:
    """Return how far `step` is from `first` (0, also before it) to `last` (1)."""
    return max(0, step - first) / max(last - first, 1)
