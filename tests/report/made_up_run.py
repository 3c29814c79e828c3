"""Made-up runs whose right verdict is known."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moebius.config import Config
from moebius.config.files import override, to_toml
from moebius.config.flags import parse_flags
from moebius.moe.load import dead_experts, variation

TOKENS = 1_000
EVEN = [250, 250, 250, 250]
DEAD = [997, 1, 1, 1]

Counts = Callable[[int], list[list[int]]]


def even(step: int) -> list[list[int]]:
    """Return an even load of two layers with experts, and none of the layer between them."""
    return [EVEN, [], EVEN]


def collapsed(step: int) -> list[list[int]]:
    """Return a load of which the first layer has three dead experts."""
    return [DEAD, [], EVEN]


def metrics_line(step: int, loss: float | None, counts: list[list[int]]) -> dict[str, Any]:
    """Return a line of metrics.jsonl. The speed is 500 tokens per second."""
    routed = [bool(layer) for layer in counts]
    return {
        "step": step,
        "tokens": step * TOKENS,
        "loss": loss,
        "lr": 0.01,
        "grad_norm": 1.0,
        "balance_loss": 1.0,
        "z_loss": 1.0,
        "tokens_per_expert": counts,
        "cv": [variation(layer) if layer else 0.0 for layer in counts],
        "dead_experts": [dead_experts(layer) if layer else 0 for layer in counts],
        "routing_entropy": [0.9 if is_routed else None for is_routed in routed],
        "max_violation": [0.0 for _ in counts],
        "mean_gate": [0.5 for _ in counts],
        "not_finite_logits": [0 for _ in counts],
        "router_grad_norm": [0.1 for _ in counts],
        "layer_balance_loss": [1.0 for _ in counts],
        "layer_z_loss": [1.0 for _ in counts],
        "dropped_share": [0.0 for _ in counts],
        "unrouted_share": [0.0 for _ in counts],
        "tokens_per_second": 500.0,
        "mfu": 0.25,
        "memory_gb": 1.5,
    }


def falling(step: int) -> float:
    """Return a loss that falls from 6 to 2."""
    return 2 + 4 / step


def metrics_lines(
    steps: Iterable[int],
    loss: Callable[[int], float | None] = falling,
    counts: Counts = even,
    evaluated: Callable[[int], float] | None = None,
) -> list[dict[str, Any]]:
    """Return the lines of some steps, of which every fifth was evaluated."""
    lines = [metrics_line(step, loss(step), counts(step)) for step in steps]
    for line in lines:
        if evaluated and line["step"] % 5 == 0:
            line |= {"val_loss": evaluated(line["step"]), "val_bpb": 1.0}
    return lines


def alarm(step: int, rule: str, layer: int = 0, **changes: Any) -> dict[str, Any]:
    """Return an alarm as events.jsonl has it."""
    event = {
        "event": "alarm",
        "step": step,
        "rule": rule,
        "layer": layer,
        "expert": -1,
        "experts": [],
        "value": 0.5,
        "threshold": 0.3,
        "since": max(0, step - 10),
        "action": "warn",
        "over": False,
        "figures": {"tokens_per_expert": EVEN},
        "done": "",
    } | changes
    return event | {"event": "over" if event["over"] else "alarm"}


def config_of(*flags: str) -> Config:
    """Return the configuration of a run of 20 steps with three layers, a dense one in between.

    Its alarms fire soon enough for so few steps.
    """
    shape = ["--model.num_layers=3", "--model.num_experts=4,0,4", "--model.base_expansion=1"]
    shape += ["--train.batch_size=10", "--train.seq_len=100"]  # TOKENS a step
    shape += ["--train.steps=20", "--train.warmup_steps=2", "--observe.dead_expert.patience=2"]
    config = override(Config(), parse_flags([*shape, "--observe.cv.patience=10"]))
    return override(config, parse_flags(list(flags)))


def write_run(
    folder: Path,
    lines: Iterable[dict[str, Any]] | None = None,
    events: Iterable[dict[str, Any]] = (),
    flags: Iterable[str] = (),
) -> Path:
    """Write a run and return its folder. Without lines, it is healthy and finished."""
    folder.mkdir(parents=True)
    lines = metrics_lines(range(1, 21), evaluated=falling) if lines is None else lines
    (folder / "config.toml").write_text(to_toml(config_of(*flags)), "utf-8")
    for name, values in (("metrics.jsonl", lines), ("events.jsonl", events)):
        text = "".join(json.dumps(value) + "\n" for value in values)
        (folder / name).write_text(text, "utf-8")
    return folder
