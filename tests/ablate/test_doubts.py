"""Tests of the reasons why the times of an ablation cannot be trusted."""

import json

import pytest

from moebius.ablate.doubts import doubts
from moebius.ablate.json_text import as_json
from moebius.ablate.tables import lines
from tests.ablate.configurations import ablation, outcome

OTHERS = "others are using the processor (1.3 of 2 cores)"


def test_steady_rounds_on_a_machine_of_ones_own_leave_no_doubt():
    assert doubts(ablation(outcome("a", [1.0, 1.1]), outcome("b", [0.5, 0.6]))) == []


@pytest.mark.parametrize("crowded", ["a", "b"])
def test_others_on_the_processor_are_named_in_every_output(crowded):
    outcomes = [outcome("a"), outcome("b")]
    next(each for each in outcomes if each.variant.name == crowded).crowding = OTHERS
    compared = ablation(*outcomes)
    (doubt,) = doubts(compared)
    assert doubt == f"these times cannot be trusted: {OTHERS} while they were measured"
    assert f"WARNING      {doubt}" in lines(compared)
    assert json.loads(as_json(compared))["doubts"] == [doubt]


def test_a_ratio_that_changes_from_round_to_round():
    (doubt,) = doubts(ablation(outcome("a", [1.0, 1.0]), outcome("b", [2.0, 0.2])))
    assert doubt.endswith("`b` had 0.50 to 5.00 times the tokens/s of `a`")
