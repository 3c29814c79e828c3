"""The layout as a whole: what it changes in a model, and the lines that announce it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from moebius.config import Config, ObserveConfig, ParallelConfig, TrainConfig
from moebius.config.observe import Rule
from moebius.errors import ConfigError
from moebius.model.transformer import seeded
from moebius.parallel import layout
from moebius.parallel.layout import check_layout, lay_out
from tests.parallel.models import CPU, SMALL


def test_names_of_parameters_stay():
    model = seeded(0, SMALL)
    names = [name for name, _ in model.named_parameters()]
    lines = lay_out(model, ParallelConfig(activation_checkpointing="full"), CPU)
    assert [name for name, _ in model.named_parameters()] == names
    assert lines == ["checkpointing: full", "compile: off (a CPU gains less than compiling costs)"]


REVIVING = ObserveConfig(dead_expert=Rule(threshold=0.01, action="revive"))
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "replicate": ({"replicate": 3}, r"replicate=3 .*number of processes \(4\).*start 3 with"),
    "shard": ({"shard": 3}, r"parallel\.shard=3.*number of processes \(4\).*start 3 with"),
    "no experts": ({"expert": 2, "num_experts": 0}, r"parallel\.expert=2: the model has no"),
    "uneven layer": ({"expert": 4, "num_experts": [8, 6, 0]}, r"expert=4: .*a layer has 6"),
    "uneven ranks": ({"expert": 3, "num_experts": 6}, r"must divide the .* processes \(4\)"),
    "six and four": (
        {"expert": 6, "shard": 4, "num_experts": 6, "processes": 12, "batch_size": 12},
        r"expert=6 and parallel\.shard=4: one must",
    ),
    "common start, sharded": (
        {"shard": 4, "common_start": 0.5},
        r"^train\.common_start: the experts",
    ),
    "common start, experts": (
        {"expert": 2, "common_start": 0.5},
        r"^train\.common_start: the experts",
    ),
    "reviving, sharded": ({"shard": 4, "observe": REVIVING}, r"^observe\.dead_expert\.action"),
    "reviving, experts": ({"expert": 2, "observe": REVIVING}, r"^observe\.dead_expert\.action"),
    "few sequences": ({"batch_size": 3}, r"batch_size=3: must be at least"),
    "a pass without any": ({"batch_size": 6, "micro_batch_size": 1}, r"micro_batch_size=1"),
    "a later phase": (
        {"phases": ({"until": 4000}, {"until": 8000, "batch_size": 2})},
        r"batch_size=2: must be at least",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_layout_that_cannot_be_trained_is_refused_by_name(case):
    values, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        check(**values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"shard": 2, "expert": 4},
        {"shard": 4, "expert": 2},
        {"replicate": 4, "common_start": 0.5, "observe": REVIVING},
        {"batch_size": 6, "micro_batch_size": 2},
        {"batch_size": 4, "micro_batch_size": 1},
    ],
)
def test_a_layout_that_can_be_trained_is_not(values):
    check(**values)


def check(
    processes: int = 4,
    num_experts: Any = 8,
    observe: ObserveConfig | None = None,
    replicate: int = 0,
    shard: int = 1,
    expert: int = 1,
    **train: Any,
) -> None:
    """Check the layout of a small model on some processes."""
    settings: dict[str, Any] = {"batch_size": 8, "steps": 20, "seq_len": 16} | train
    if "phases" in train:
        del settings["steps"]
    config = Config(
        model=replace(SMALL, num_experts=num_experts),
        train=TrainConfig(**settings),
        parallel=ParallelConfig(replicate=replicate, shard=shard, expert=expert),
        observe=observe or ObserveConfig(),
    )
    check_layout(config, processes)


@pytest.mark.parametrize(
    ("compile", "device", "line"),
    [
        ("auto", "cpu", "compile: off (a CPU gains less than compiling costs)"),
        ("auto", "cuda", "compile: each block and the loss head (a GPU)"),
        ("off", "cuda", "compile: off (asked for)"),
        ("on", "cpu", "compile: each block and the loss head (asked for)"),
    ],
)
def test_the_choice_is_announced(monkeypatch, compile, device, line):
    monkeypatch.setattr(layout, "compile_parts", lambda model: None)
    parallel = ParallelConfig(compile=compile)
    lines = lay_out(seeded(0, SMALL), parallel, torch.device(device))
    assert lines == ["checkpointing: none", line]


def test_checkpointing_comes_before_compilation(monkeypatch):
    """Only in this order does the compiler see what backward computes again."""
    calls = []
    monkeypatch.setattr(layout, "recompute_in_backward", lambda *_: calls.append("recompute"))
    monkeypatch.setattr(layout, "compile_parts", lambda *_: calls.append("compile"))
    lay_out(seeded(0, SMALL), ParallelConfig(compile="on"), CPU)
    assert calls == ["recompute", "compile"]
