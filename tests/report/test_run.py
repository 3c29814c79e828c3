"""Tests of reading a run's directory, whatever is missing or damaged."""

import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest

from moebius.errors import CheckpointError
from moebius.observe.expert_counts import FOLDER, GROUP, ExpertCounts
from moebius.observe.json_lines import JsonLines
from moebius.observe.sink import Sinks
from moebius.report.run import MOST_SAMPLES, read_run
from moebius.train.ownership import Ownership
from tests.observe.made_up import large_metrics
from tests.report.made_up_run import alarm, write_run


@pytest.fixture
def folder(tmp_path):
    """The folder of a healthy run."""
    return write_run(tmp_path / "run")


def test_everything_is_read(folder):
    run = read_run(folder)
    assert run.problems == []
    assert run.name == "run"
    assert run.config is not None and run.config.train.steps == 20
    assert run.curves.num_lines == len(run.shares.steps) == 20


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "events.jsonl"])
def test_a_missing_file_is_named_and_the_others_are_shown(folder, name):
    (folder / name).unlink()
    run = read_run(folder)
    assert len(run.problems) == 1 and name in run.problems[0]
    assert (run.config is None) == (name == "config.toml")
    assert (run.curves.num_lines == 0) == (name == "metrics.jsonl")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.toml", b"\xff\xfe"),
        ("config.toml", b"[model]\ndim = 'wide'\n"),
        ("config.toml", b"= ="),
        ("metrics.jsonl", b"\0\0\0\n"),
        ("metrics.jsonl", b'{"step": 7\n[1]\n{"step": "x"}\n'),
        ("events.jsonl", b"\xff\n"),
        ("profile.json", b"[]"),
        ("profile.json", b"{"),
        ("ablate.json", b"7"),
        ("evaluations/step-00000005.json", b"\xff"),
    ],
)
def test_a_damaged_file_is_named(folder, name, damage):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(damage + (path.read_bytes() if path.suffix == ".jsonl" else b""))
    run = read_run(folder)
    assert len(run.problems) == 1 and name in run.problems[0]
    if name != "metrics.jsonl":
        assert run.curves.num_lines == 20


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "events.jsonl", "profile.json"])
def test_a_folder_in_place_of_a_file_is_named(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert any(name in problem for problem in read_run(folder).problems)


def test_a_run_of_which_only_the_metrics_are_left(folder):
    for path in folder.iterdir():
        if path.name != "metrics.jsonl":
            path.unlink()
    assert read_run(folder).curves.num_lines == 20


def test_what_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="not a run directory"):
        read_run(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such directory"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError):
        read_run(tmp_path / "file")


def test_the_counts_of_many_experts_are_read_from_their_folder(tmp_path):
    folder = write_run(tmp_path / "run", [])
    steps = range(1, 2 * GROUP + 11)
    with Sinks([JsonLines(), ExpertCounts()], folder, 0) as sinks:
        for step in steps:
            sinks.write(large_metrics(step))
    run = read_run(folder)
    assert run.problems == []
    assert run.shares.experts == [600, 0, 500]
    assert run.shares.steps[-1] == steps[-1]
    first = sorted((folder / FOLDER).glob("*.parquet"))[0]
    first.write_bytes(first.read_bytes()[:-100])
    damaged = read_run(folder)
    assert len(damaged.problems) == 1 and first.name in damaged.problems[0]
    assert damaged.shares.steps[0] > GROUP and damaged.shares.steps[-1] == steps[-1]
    assert damaged.curves.num_lines == len(steps)


def test_samples_are_spread_over_the_run(folder):
    lines = [{"step": n, "text": f"text {n}"} for n in range(100)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "text": 5}\n'
    (folder / "samples.jsonl").write_text(text)
    steps = [sample["step"] for sample in read_run(folder).samples]
    assert len(steps) == MOST_SAMPLES and steps[0] == 0 and steps[-1] == 99


def test_checkpoints_are_listed_by_their_names(folder):
    for name in ("step-00000010", "step-00000020", "step-00000030.partial", "other"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    assert read_run(folder).checkpoints == [20, 10]


def test_a_run_that_another_process_trains(folder):
    (folder / ".lock").write_text("{}")
    with (folder / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert read_run(folder).is_owned
    assert not read_run(folder).is_owned


def test_a_run_that_this_process_trains(folder):
    """The process that trains a run writes its report when it has ended."""
    owner = Ownership(folder, pytest.fail)
    assert not read_run(folder).is_owned
    owner.check()


def test_reading_writes_nothing(folder):
    before = sorted(path.name for path in folder.iterdir())
    read_run(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_copied_run_without_permission_is_named(folder, tmp_path):
    events = write_run(tmp_path / "other", events=[alarm(3, "cv")])
    shutil.copy(events / "events.jsonl", folder / "events.jsonl")
    code = (
        "import os, sys; from pathlib import Path; from moebius.report.run import read_run;"
        "os.setuid(65534); print(read_run(Path(sys.argv[1])).problems)"
    )
    if os.getuid():
        pytest.skip("needs root, who may become another user")
    (folder / "events.jsonl").chmod(0)
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=False
    )
    if "Permission denied" not in done.stdout:
        pytest.skip(f"another user cannot run Python here: {done.stderr[-200:]}")
    assert "events.jsonl: not readable (Permission denied)" in done.stdout
