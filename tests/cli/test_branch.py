"""Tests of `moebius branch`."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.command_line import losses, micro, refused, steps


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, beside which branches can be made."""
    copy = tmp_path / "runs" / "run"
    shutil.copytree(trained / "runs" / "run", copy)
    return copy


def test_a_branch_is_trained_to_its_end(run, moebius):
    result = moebius("branch", run, "--step", "4", "--name", "twin")
    assert result.code == 0, result.err
    assert f"branched from {run} at step 4" in result.out
    twin = run.parent / "twin"
    assert steps(twin) == [5, 6, 8, 10] and losses(twin) == losses(run)[2:]
    assert (twin / "report.html").is_file() and f"report:        {twin}" in result.out
    result = moebius("resume", twin, "--train.steps", "12")
    assert result.code == 0 and steps(twin)[-1] == 12


def test_settings_come_from_a_file_and_from_flags(run, tmp_path, moebius):
    file = tmp_path / "anneal.toml"
    file.write_text("[train]\nlr = 1e-4\nsteps = 12\n")
    result = moebius("branch", run, file, "--name", "annealed", "--train.steps", "11")
    assert result.code == 0, result.err
    assert "changed from step 11 on: train.lr 0.006 -> 0.0001" in result.out
    assert "the learning rate jumps" in result.out
    annealed = run.parent / "annealed"
    assert steps(annealed) == [11]
    (event,) = map(json.loads, (annealed / "events.jsonl").read_text().splitlines())
    assert event["event"] == "branched" and event["origin"]["path"] == str(run)
    assert event["changed"] == {"train.steps": [10, 11], "train.lr": [0.006, 0.0001]}


def test_the_name_may_be_a_setting_and_the_folder_another_one(run, tmp_path, moebius):
    out = tmp_path / "elsewhere"
    words = ("branch", run, "--step", "4", "--train.name", "b", "--train.out", out)
    assert moebius(*words).code == 0
    assert steps(out / "b") == [5, 6, 8, 10]


def test_what_is_refused(run, tmp_path, moebius):
    with_base = tmp_path / "base.toml"
    with_base.write_text('base = "tiny"\n')
    branch = ("branch", run, "--step", "4")
    refused(moebius(*branch), 2, "--name is missing")
    refused(moebius(*branch, "--name", "a", "--train.name", "b"), 2, "is another name")
    refused(moebius(*branch, "--name", "run"), 2, f"{run} exists")
    refused(moebius(*branch, "--name", "a", "--model.dim", "64"), 2, "model.dim=64", "do not fit")
    refused(moebius("branch", run, "--name", "a"), 2, "the branch begins at step 10")
    refused(moebius("branch", run, "--name", "a", "--step", "5"), 4, "no checkpoint of step 5")
    refused(moebius("branch", tmp_path / "no", "--name", "a"), 2, "there is no such directory")
    refused(moebius("branch", run, with_base, "--name", "a"), 2, "base='tiny'")
    refused(moebius("branch", run, tmp_path / "no.toml", "--name", "a"), 2, "no.toml")
    (run / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"no")
    refused(moebius(*branch, "--name", "a"), 4, "step-00000004/model.safetensors: 2 bytes")
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_one_of_several_processes_makes_no_branch(run, moebius, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    refused(moebius("branch", run, "--step", "4", "--name", "a"), 2, "2 processes were started")
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_run_that_was_never_saved_has_no_branch(tmp_path, moebius):
    flags = micro(tmp_path, train__name="run", train__steps=2)
    assert moebius("train", "tiny", *flags).code == 0
    run = tmp_path / "runs" / "run"
    shutil.rmtree(run / "checkpoints")
    refused(moebius("branch", run, "--name", "a"), 4, "no intact checkpoint")
