"""Made-up runs for tests of the live view."""

import numpy as np

from moebius.moe.load import dead_experts, variation
from moebius.observe.metrics import LayerMetrics, StepMetrics
from moebius.observe.so_far import SoFar

SIZES = [(80, 24), (120, 40), (200, 50), (60, 15)]


def layer_of(counts: list[int]) -> LayerMetrics:
    """Return the figures of a layer whose experts took these numbers of tokens."""
    return LayerMetrics(
        tokens_per_expert=counts,
        cv=variation(counts),
        dead_experts=dead_experts(counts),
        routing_entropy=0.9,
    )


def step_of(
    step: int, loss: float, counts: list[list[int]], val_loss: float | None = None
) -> StepMetrics:
    """Return the figures of a step."""
    return StepMetrics(
        step=step,
        tokens=step * 1000,
        loss=loss,
        lr=6e-4,
        grad_norm=0.8,
        balance_loss=1.0,
        z_loss=0.0,
        layers=[layer_of(layer) for layer in counts],
        tokens_per_second=162_345.0,
        mfu=0.412,
        memory_gb=31.4,
        val_loss=val_loss,
        val_bpb=None if val_loss is None else val_loss / 2,
    )


def made_up(num_layers: int, num_experts: int, kind: str = "healthy") -> SoFar:
    """Return a run of 1,000 steps: healthy, collapsed or diverged."""
    generator = np.random.default_rng(0)
    so_far = SoFar("my-run", 5_000)
    for step in range(10, 1001, 10):
        loss = 3 + 7 * 0.99**step
        if kind == "diverged" and step > 900:
            loss += (step - 900) / 20
        logits = np.zeros((num_layers, num_experts))
        if kind == "collapsed":
            logits = generator.normal(size=logits.shape) * 3
            logits[:, :1] = -20
        counts = [(np.exp(row) / np.exp(row).sum() * 1e6).astype(int).tolist() for row in logits]
        so_far.add(step_of(step, loss, counts, loss + 0.1 if step % 200 == 0 else None))
    so_far.happen("step 1000: checkpoint", "checkpoint")
    so_far.seconds, so_far.seconds_left = 3661.0, 25 * 3600.0
    return so_far
