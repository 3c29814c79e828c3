"""Made-up metrics and events, for tests of the code that reads them."""

from typing import Any

import numpy as np

from moebius.observe.metrics import StepMetrics

HEALTHY: dict[str, Any] = {
    "step": 20,
    "tokens": 2_000,
    "loss": 4.0,
    "lr": 0.01,
    "grad_norm": 2.0,
    "balance_loss": 1.0,
    "z_loss": 3.0,
    "tokens_per_expert": [[30, 40, 50], [], [40, 40, 40]],
    "cv": [0.2, 0.0, 0.0],
    "max_violation": [0.25, 0.0, 0.0],
    "dead_experts": [0, 0, 0],
    "experts_per_token": [1.0, None, 1.0],
    "routing_entropy": [0.9, None, 0.8],
    "mean_gate": [0.5, None, 0.5],
    "dropped_share": [0.0, 0.0, 0.1],
    "unrouted_share": [0.0, 0.0, 0.1],
    "vanished_share": [0.0, 0.0, 0.0],
    "not_finite_logits": [0, 0, 0],
    "router_grad_norm": [0.1, None, 0.2],
    "layer_balance_loss": [1.0, None, 1.0],
    "layer_z_loss": [3.0, None, 3.0],
    "tokens_per_second": 12_345.0,
    "mfu": 0.25,
    "memory_gb": 1.5,
}
"""The line of a step with three healthy layers, of which the middle one is dense."""


def metrics_of(**changes: Any) -> StepMetrics:
    """Return the metrics of a healthy step, with some columns of its line replaced."""
    return StepMetrics.from_json(HEALTHY | changes)


def large_metrics(step: int, num_experts: int = 600, seed: int = 0) -> StepMetrics:
    """Return a step of a model with many experts: layers of them, a dense one in between.

    Their counts, and the figures of the layers, differ from step to step.
    """
    generator = np.random.default_rng(step + 1_000_000 * seed)
    counts = [generator.poisson(40, num_experts).tolist(), [], generator.poisson(9, 500).tolist()]
    floats = {
        name: [value if value is None else value + generator.random() for value in column]
        for name, column in HEALTHY.items()
        if isinstance(column, list) and name not in ("tokens_per_expert", "dead_experts")
    }
    return metrics_of(step=step, tokens_per_expert=counts, **floats)


def dense_metrics(**changes: Any) -> StepMetrics:
    """Return the metrics of a step of a model without layers that have experts."""
    line = {name: [] if isinstance(value, list) else value for name, value in HEALTHY.items()}
    return StepMetrics.from_json(line | changes)


class Happening:
    """An event that consists of nothing but a step."""

    def __init__(self, step: int):
        self.step = step

    def to_json(self) -> dict[str, Any]:
        return {"event": "happening", "step": self.step}

    def __str__(self) -> str:
        return f"happening {self.step}"
