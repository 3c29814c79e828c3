"""Whether a run is healthy at a glance, judged by its latest logged steps.

A report judges the whole run, and says what to do (moebius/report/verdict.py).
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from moebius.moe.load import dead_share
from moebius.observe.so_far import SoFar

RISE, LEAST_RISE = 0.2, 0.3
"""A run has diverged if its loss ends above its best by this share, and by this many nats."""
SMOOTHED = 10
"""Number of logged losses of which a mean is taken, because single batches differ."""

Tone = Literal["good", "warn", "bad", "calm"]


class Balance(NamedTuple):
    """How a layer's load is spread over its experts."""

    shares_E: np.ndarray
    cv: float
    dead: int
    """Number of dead experts."""


class Health(NamedTuple):
    """A judgment in a few words."""

    tone: Tone
    words: str


def balances(so_far: SoFar) -> tuple[dict[int, Balance], int]:
    """Return the balance of each layer with experts, and the number of steps that it is from."""
    counts, num_steps = so_far.loads.summed()
    return {layer: balance_of(counts_E) for layer, counts_E in counts.items()}, num_steps


def balance_of(counts_E: np.ndarray) -> Balance:
    """Return the balance of a layer whose experts took these numbers of tokens."""
    total = counts_E.sum()
    if not total:
        return Balance(np.zeros(len(counts_E)), 0.0, len(counts_E))
    shares_E = counts_E / total
    cv = float(shares_E.std() * len(shares_E))
    return Balance(shares_E, cv, int((shares_E < dead_share(len(shares_E))).sum()))


def health(so_far: SoFar, layers: dict[int, Balance]) -> Health:
    """Return the worst thing that is true of the latest steps of a run."""
    latest, limits = so_far.latest, so_far.limits
    if latest is None:
        words = "too early to judge" if so_far.points else "no step logged yet"
        return Health("calm", words)
    if not math.isfinite(latest.loss):
        return Health("bad", "the loss is not finite")
    if rise := _rise(so_far):
        return Health("bad", rise)
    num_dead = sum(balance.dead for balance in layers.values())
    num_experts = sum(len(balance.shares_E) for balance in layers.values())
    if num_dead:
        tone = "bad" if latest.step >= limits.dead_expert.patience else "calm"
        return Health(tone, f"{num_dead:,} of {num_experts:,} experts dead")
    uneven = {n: each.cv for n, each in layers.items() if each.cv > limits.cv.threshold}
    if uneven:
        worst = max(uneven, key=lambda layer: uneven[layer])
        tone = "warn" if latest.step >= limits.cv.patience else "calm"
        return Health(tone, f"uneven: CV {uneven[worst]:.2f} in layer {worst}")
    return Health("good", "healthy so far")


def _rise(so_far: SoFar) -> str:
    """Return how far the recent loss has risen above its best, in words; "" if it has not."""
    losses = np.array([point.loss for point in list(so_far.points)])
    losses = losses[np.isfinite(losses)]
    if len(losses) < 3:
        return ""
    size = min(SMOOTHED, 1 + len(losses) // 3)
    means = np.convolve(losses, np.full(size, 1 / size), "valid")
    best, last = means.min(), means[-1]
    if last <= best + max(LEAST_RISE, RISE * best):
        return ""
    return f"the loss rose from {best:.2f} to {last:.2f}"
