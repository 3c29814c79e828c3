"""The figures that `plan` and the summary print, compared with recorded ones to the last digit.

Other tests derive what they can by hand. Most estimates cannot be derived: they were fitted to
measurements, and a changed constant, layer or unit would look as plausible as before. A figure
that changes here changes what people are told. If that is meant, record the figures again, look at
the difference, and give the reason and the measurement in the commit:

    python -m tests.cost.test_layouts_recorded
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from moebius.config.files import read_config
from moebius.cost.counts import (
    active_parameters,
    hidden_weights,
    parameters,
    training_flops_per_token,
)
from moebius.cost.floor import components
from moebius.cost.layouts import Layout, planned
from moebius.hardware.devices import DEVICES

RECORD = Path(__file__).with_name("layouts_recorded.json")
CASES = {
    "standard": ("standard", "h100", Layout(1, 1, False, "none", 16, 1)),
    "standard, float8": (
        "standard --train.expert_dtype=float8",
        "h200",
        Layout(1, 1, False, "none", 16, 2),
    ),
    "pyramid, base MLP and MTP": ("pr_moe", "h100", Layout(2, 2, False, "full", 4, 3)),
    "pyramid of numbers": (
        "standard --model.num_layers=5 --model.num_experts=8,8,16,16,32 --model.router_top_k=3 "
        "--model.moe_min_expansion=0.5 --model.moe_max_expansion=1.5 --model.use_mtp=true",
        "a100",
        Layout(16, 8, False, "selective", 8, 2),
    ),
    "small experts on many GPUs": (
        "standard --model.num_experts=64 --model.router_top_k=8 --model.moe_min_expansion=0.25 "
        "--model.moe_max_expansion=0.25 --model.base_expansion=0.5 --train.optimizer=muon "
        "--train.seq_len=256",
        "l40s",
        Layout(64, 1, True, "none", 1, 1),
    ),
    "experts over several machines": (
        "standard --model.num_experts=64 --train.seq_len=256",
        "h100",
        Layout(64, 16, False, "none", 1, 1),
    ),
    "bound by launches": ("tiny", "h200", Layout(1, 1, False, "none", 1, 8)),
    "dense, bound by launches": (
        "tiny --model.num_experts=0 --model.base_expansion=3",
        "h200",
        Layout(1, 1, False, "none", 1, 8),
    ),
    "sigmoid router": (
        "stability --model.num_layers=3 --model.num_experts=4,8,16 --model.use_mtp=true",
        "rtx-4090",
        Layout(8, 4, True, "full", 2, 1),
    ),
    "switch, 12 layers": (
        "switch --model.num_layers=12",
        "b200",
        Layout(2, 1, False, "none", 8, 1),
    ),
    "dense, GELU": (
        "dense_112m --model.head_dim=48",
        "l40s",
        Layout(4, 1, True, "selective", 4, 2),
    ),
}
"""A configuration, a GPU, and a layout of each kind."""


def figures(name: str) -> dict[str, Any]:
    """Return every figure of a case, with the dataclasses as objects."""
    command, gpu, layout = CASES[name]
    preset, *flags = command.split()
    config = read_config(preset, flags)
    model, seq_len, device = config.model, config.train.seq_len, DEVICES[gpu]
    plan = planned(config, device, layout, imbalance=1.5)
    return {
        "parameters": parameters(model),
        "active_parameters": active_parameters(model),
        "hidden_weights": hidden_weights(model),
        "training_flops_per_token": training_flops_per_token(model, seq_len),
        "work": {name: asdict(work) for name, work in components(config, 2).items()},
        "memory": asdict(plan.memory) | {"peak": plan.memory.peak},
        "computing": plan.computing,
        "sent": plan.sent,
        "communicating": plan.communicating,
        "seconds": plan.seconds,
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "layout": str(layout),
    }


@pytest.mark.parametrize("name", CASES)
def test_figures_are_the_recorded_ones(name):
    assert by_place(figures(name)) == json.loads(RECORD.read_text())[name]


def by_place(value: Any, place: str = "") -> dict[str, Any]:
    """Return a nested object's values by their place in it, numbers with ten digits."""
    if isinstance(value, dict):
        inner = (by_place(part, f"{place} {key}".strip()) for key, part in value.items())
        return {key: number for part in inner for key, number in part.items()}
    return {place: float(f"{value:.10g}") if isinstance(value, float) else value}


if __name__ == "__main__":
    recorded = {name: by_place(figures(name)) for name in CASES}
    RECORD.write_text(json.dumps(recorded, indent=1) + "\n")
