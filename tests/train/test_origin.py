"""Where a run comes from, in run.json and in its first event."""

import json

import pytest

from moebius.train.origin import Begun, Origin
from moebius.train.run_directory import RunDirectory
from moebius.train.run_record import RunRecord

ORIGIN = Origin("branched", "/runs/a", 400, "0" * 64)


@pytest.mark.parametrize("origin", [ORIGIN, Origin("imported", "/models/b"), None])
def test_a_record_keeps_the_origin(small, tmp_path, origin):
    path = tmp_path / "run.json"
    RunRecord(small, origin=origin).write(path)
    record = RunRecord.read(path)
    assert record is not None and record.origin == origin


def test_the_first_event_says_what_the_run_began_with(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_first_event(Begun(ORIGIN, {"train.lr": (1e-3, 1e-4)}))
    assert json.loads(run.events_path.read_text()) == {
        "event": "branched",
        "step": 400,
        "origin": {"path": "/runs/a", "step": 400, "sha256": "0" * 64},
        "changed": {"train.lr": [1e-3, 1e-4]},
    }


def test_an_event_leaves_out_what_is_not_known():
    origin = Origin("imported", "/models/b", upcycled="num_experts=8")
    assert Begun(origin).to_json()["origin"] == {
        "path": "/models/b",
        "step": 0,
        "upcycled": "num_experts=8",
    }
