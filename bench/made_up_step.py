"""A logged step with made-up figures, for the scripts that measure what is done with it."""

from collections.abc import Sequence

import numpy as np

from moebius.moe.load import dead_experts, variation
from moebius.observe.metrics import LayerMetrics, StepMetrics


def made_up_step(step: int, loads: Sequence[list[int]], noise: np.random.Generator) -> StepMetrics:
    """Return the metrics of a step in which the experts of each layer took `loads` tokens.

    All other figures are random, and have as many digits as real ones.
    """
    layers = [
        LayerMetrics(
            tokens_per_expert=counts,
            cv=variation(counts),
            max_violation=noise.random(),
            dead_experts=dead_experts(counts),
            experts_per_token=8.0,
            routing_entropy=noise.random(),
            mean_gate=noise.random(),
            router_grad_norm=noise.random(),
            balance_loss=noise.random(),
            z_loss=noise.random(),
        )
        for counts in loads
    ]
    return StepMetrics(
        step=step,
        tokens=step * 500_000,
        loss=3 + noise.random() / 10,
        lr=1e-4,
        grad_norm=noise.random(),
        balance_loss=1.0,
        z_loss=1.0,
        layers=layers,
        tokens_per_second=1e6,
        mfu=0.4,
        memory_gb=60.0,
    )
