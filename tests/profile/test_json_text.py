"""Tests of a profile as JSON."""

import json

import pytest

from moebius.profile.finding import Finding
from moebius.profile.json_text import as_json
from moebius.profile.verify import Verified
from tests.profile.made_up import made_up, small_config


def test_it_has_the_table_in_seconds():
    profile = made_up(small_config())
    finding = Finding("a title", "some evidence", ("--model.dim=1",), 0.5)
    values = json.loads(as_json(profile, [finding], [Verified(finding, 1.5, [1.0], [0.75])]))
    assert values["step_seconds"] == profile.measured.seconds
    assert values["findings"][0]["flags"] == ["--model.dim=1"]
    (verified,) = values["verified"]
    assert verified == {
        "finding": "a title",
        "predicted": 1.5,
        "before": [1.0],
        "after": [0.75],
        "crowding": "",
    }
    took = sum(row["forward"] + row["backward"] for row in values["components"])
    assert took == pytest.approx(values["step_seconds"], rel=0.01)
