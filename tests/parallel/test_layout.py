"""The layout as a whole: what it changes in a model, and the lines that announce it."""

import pytest
import torch

from moebius.config import ParallelConfig
from moebius.model.transformer import seeded
from moebius.parallel import layout
from moebius.parallel.layout import lay_out
from tests.parallel.models import CPU, SMALL


def test_names_of_parameters_stay():
    model = seeded(0, SMALL)
    names = [name for name, _ in model.named_parameters()]
    lines = lay_out(model, ParallelConfig(activation_checkpointing="full"), CPU)
    assert [name for name, _ in model.named_parameters()] == names
    assert lines == ["checkpointing: full", "compile: off (a CPU gains less than compiling costs)"]


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
