"""Tests of a variant that runs steps and is trained, in the process of the test."""

from dataclasses import replace

import pytest

from moebius.ablate.contender import Contender
from moebius.errors import NumericError


@pytest.fixture
def contender(few) -> Contender:
    """A variant on the CPU that has not done anything yet."""
    return Contender(replace(few, train=replace(few.train, device="cpu")))


def test_it_runs_steps(contender):
    warm = contender.start()
    assert isinstance(warm["seconds"], float) and warm["seconds"] > 0
    assert str(warm["device"]).startswith("CPU ")
    measured = contender.run(2)
    assert measured["seconds"] > 0 and measured["peak_bytes"] > 1e6
    assert isinstance(measured["crowding"], str)
    assert contender.steps.state.step == 8  # 3 to compile, 3 to warm up, and these


def test_it_learns_the_same_from_the_same_seed(contender):
    losses = []
    for seed in (7, 7, 8):
        contender.begin(seed, steps=4, eval_tokens=500)
        assert contender.learn(2)["seconds"] > 0
        assert contender.learn(4)["seconds"] > 0
        losses.append(contender.evaluate()["loss"])
    assert losses[0] == losses[1] != losses[2]
    assert (contender.state.step, contender.state.sequences) == (4, 16)
    assert contender.config.train.steps == 4


def test_updates_that_are_not_finite_end_it(contender):
    train = replace(contender.config.train, lr=1e30, grad_clip=0.0, max_skipped=1, warmup_steps=0)
    contender.config = replace(contender.config, train=train)
    contender.begin(seed=0, steps=12, eval_tokens=500)
    with pytest.raises(NumericError, match="of the updates up to step 12"):
        contender.learn(12)
