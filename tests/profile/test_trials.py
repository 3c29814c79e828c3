"""Tests of the parts of a step that are timed alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from moebius.profile import trials
from moebius.profile.steps import Steps

CPU = torch.device("cpu")
H, S = 16, 32


@pytest.fixture
def steps(small) -> Steps:
    """A model of 2 heads of 16, trained on 4 sequences of 32 tokens in two micro-batches."""
    train = replace(small.train, micro_batch_size=2)
    return Steps(replace(small, train=train), CPU)


@pytest.mark.parametrize(
    ("part", "shapes"),
    [
        (lambda steps: trials.attention(steps, 2, 1, H), [(2, 2, S, H), (2, 1, S, H)]),
        (lambda steps: trials.head(steps, 1), [(2, S, 32), (257, 32)]),
        (lambda steps: trials.head(steps, 4), [(2, S, 32), (257, 32)]),
        (lambda steps: trials.product(steps, 32, 48), [(2 * S, 32), (48, 32)]),
    ],
    ids=["attention", "head at once", "head in parts", "product"],
)
def test_a_part_runs_forward_and_backward(
    steps, part: Callable[[Steps], trials.Work], shapes: list[tuple[int, ...]]
):
    gradients = part(steps)()
    assert isinstance(gradients, tuple)
    assert [tuple(gradient.shape) for gradient in gradients[:2]] == shapes


def test_experts_run_under_the_load_that_is_asked_for(steps):
    load_E = torch.tensor([96.0, 32.0, 0.0])  # of the 4 * 32 tokens of a step
    gradients = trials.experts(steps, load_E)()
    assert isinstance(gradients, tuple)
    x_TD, gate_EDF, up_EDF, down_EFD = gradients
    assert x_TD.shape == (2 * S, 32)
    for gradient in (gate_EDF, up_EDF, down_EFD):
        assert gradient[:2].any() and not gradient[2].any()


def test_the_ratio_is_of_work_in_turns():
    calls: list[str] = []

    def busy(name: str, count: int) -> trials.Work:
        x = torch.ones(200, 200)

        def work() -> None:
            calls.append(name)
            for _ in range(count):
                torch.mm(x, x)

        return work

    assert trials.ratio(busy("long", 40), busy("short", 4), CPU) > 2
    assert calls == ["long", "short"] * (trials.ROUNDS + 1)
