"""Tests of the reasons why the figures of a profile cannot be trusted."""

import json

import pytest

from moebius.profile.doubts import doubts
from moebius.profile.json_text import as_json
from moebius.profile.page import page
from moebius.profile.table import table
from tests.profile.made_up import made_up, small_config

STEP = made_up(small_config()).measured.seconds


def test_a_steady_measurement_leaves_no_doubt():
    profile = made_up(small_config(), rounds=[0.95 * STEP, *[STEP] * 5, 1.05 * STEP, 5 * STEP])
    assert doubts(profile) == ""  # a burst of one round does not change a median
    assert "WARNING" not in "\n".join(table(profile))


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        ({"crowding": "others are using the processor (1.3 of 2 cores)"}, "(1.3 of 2 cores), so"),
        ({"rounds": [STEP, STEP, STEP, 2 * STEP, 2 * STEP]}, "more than 2.00 times as long"),
        ({"rounds": [STEP / 1.319] * 3}, "add up to 132% of the step"),
        ({"rounds": [STEP / 0.8] * 3}, "add up to 80% of the step"),
    ],
)
def test_every_output_says_that_the_figures_cannot_be_trusted_and_why(measured, reason):
    profile = made_up(small_config(), **measured)
    doubt = doubts(profile)
    assert doubt.startswith("these figures cannot be trusted: ") and reason in doubt
    assert f"WARNING    {doubt}" in table(profile)
    assert doubt in page(profile, [])
    assert json.loads(as_json(profile, []))["doubts"] == doubt
