"""Tests of the options of an ablation."""

import pytest

from moebius.ablate.ablation import AblateOptions
from moebius.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"rounds": -1}, "--rounds -1: must be at least 0"),
        ({"seconds": float("nan")}, "--seconds nan: must be a finite number"),
        ({"learn": -5}, "--learn -5"),
        ({"learn_seconds": -1.0}, "--learn-seconds -1"),
        ({"learn": 5, "learn_seconds": 1.0}, "only one of them"),
        ({"seeds": 0, "learn": 5}, "--seeds 0: must be at least 1"),
        ({"seeds": 2}, "--learn STEPS"),
    ],
)
def test_options_that_make_no_sense(values, part):
    with pytest.raises(ConfigError, match=part):
        AblateOptions(**values)


def test_nothing_is_learned_unless_it_is_asked_for():
    assert not AblateOptions().learns
    assert AblateOptions(learn=1).learns and AblateOptions(learn_seconds=0.5).learns
