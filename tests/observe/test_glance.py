"""Whether a run is healthy at a glance."""

import math

import pytest

from moebius.config import ObserveConfig
from moebius.config.observe import Rule
from moebius.observe.glance import balances, health
from moebius.observe.so_far import SoFar
from tests.observe.made_up_view import made_up, step_of


def judged(so_far: SoFar) -> tuple[str, str]:
    """Return the tone and the words."""
    return health(so_far, balances(so_far)[0])


@pytest.mark.parametrize(
    ("kind", "tone", "words"),
    [
        ("healthy", "good", "healthy so far"),
        ("collapsed", "bad", "experts dead"),
        ("diverged", "bad", "the loss rose from 3.00 to "),
    ],
)
def test_kinds_of_runs(kind, tone, words):
    found = judged(made_up(4, 16, kind))
    assert found[0] == tone and words in found[1]


@pytest.mark.parametrize(("step", "tone"), [(5, "calm"), (100, "warn")])
def test_an_uneven_load_is_an_alarm_only_later(step, tone):
    so_far = SoFar("run", 200)
    so_far.add(step_of(step, 3.0, [[1000, 1000], [1900, 1000]]))
    assert judged(so_far) == (tone, "uneven: CV 0.31 in layer 1")


def test_the_limits_are_those_of_the_run():
    so_far = SoFar("run", 200, ObserveConfig(cv=Rule(threshold=0.4)))
    so_far.add(step_of(100, 3.0, [[1900, 1000]]))
    assert judged(so_far)[0] == "good"


def test_a_loss_that_is_not_finite_is_worst():
    so_far = made_up(4, 16, "collapsed")
    so_far.add(step_of(1010, math.nan, [[1, 1]]))
    assert judged(so_far) == ("bad", "the loss is not finite")
    assert judged(SoFar())[0] == "calm"


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_noise_is_no_rise(noise):
    so_far = SoFar("run", 1000)
    for step in range(300):
        so_far.add(step_of(step, 3 + noise * math.sin(step * step), []))
    assert judged(so_far)[0] == "good"
