"""Tests of `moebius resume`."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.command_line import micro, refused, steps


def test_resume_with_more_steps_goes_on(trained, moebius):
    assert moebius("train", "tiny", *micro(trained, train__name="longer")).code == 0
    run = trained / "runs" / "longer"
    result = moebius("resume", run, "--train.steps", "14")
    assert result.code == 0 and f"resuming {run} at step 10 of 14" in result.out
    assert steps(run) == [2, 4, 5, 6, 8, 10, 12, 14]
    assert (run / "checkpoints" / "step-00000014").is_dir()


def test_an_alarm_that_stops_a_run_and_the_run_without_it(tmp_path, moebius):
    stop = [
        "--observe.cv.threshold",
        "0",
        "--observe.cv.window=1",
        "--observe.cv.patience",
        "0",
        "--observe.cv.action=stop",
    ]
    result = moebius(
        "train",
        "tiny",
        *micro(tmp_path, train__name="run"),
        *stop,
        "--observe.tensorboard",
        "false",
    )
    run = tmp_path / "runs" / "run"
    refused(
        result,
        5,
        "step 2: alarm: layer ",
        "stopped as observe.cv.action says",
        f"`moebius resume {run}`",
    )
    assert "; state saved" in result.out and [
        path.name for path in (run / "checkpoints").iterdir()
    ] == ["step-00000002"]
    (event,) = (json.loads(line) for line in (run / "events.jsonl").read_text().splitlines())
    assert (event["step"], event["rule"], event["action"], event["done"]) == (
        2,
        "cv",
        "stop",
        "state saved",
    )
    assert not (run / "tb").exists()
    result = moebius(
        "resume", run, "--observe.cv.action", "off", "--observe.dead-expert.threshold", "0.02"
    )
    assert result.code == 0 and f"resuming {run} at step 2 of 10" in result.out
    assert steps(run) == [2, 4, 5, 6, 8, 10]


def test_a_run_whose_checkpoints_are_all_damaged(trained, tmp_path: Path, moebius):
    run = tmp_path / "damaged"
    shutil.copytree(trained / "runs" / "run", run)
    for model in run.glob("checkpoints/*/model.safetensors"):
        model.write_bytes(b"no")
    result = moebius("resume", run)
    assert result.out.count("passed over") == 3
    refused(result, 4, f"{run / 'checkpoints'}: no intact checkpoint")


def test_a_resumed_run_keeps_its_model_and_data(trained, moebius):
    run = trained / "runs" / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    refused(
        moebius("resume", run, "--model.dim", "64"),
        2,
        "model.dim=64: a resumed run keeps model.dim=32, because the weights",
        "start a new run to change it",
    )
    refused(
        moebius("resume", run, "--train.seed", "1", "--train.steps", "20"),
        2,
        "train.seed=1: a resumed run keeps train.seed=0, because it decides the order of the data",
    )
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["gone", "--train.steps", "5"], "gone: not a run directory"),
        (["--train.steps", "5"], "RUN is missing"),
        (["--train.steps", "5", "gone"], "'gone' was not expected here; RUN must come first"),
    ],
)
def test_words_that_are_not_understood(words, part, moebius):
    refused(moebius("resume", *words), 2, part)


def test_a_setting_that_does_not_exist(trained, moebius):
    run = trained / "runs" / "run"
    refused(moebius("resume", run, "--lr", "1e-3"), 2, "did you mean --train.lr")


def test_more_than_one_process_is_refused(trained, monkeypatch, moebius):
    monkeypatch.setenv("RANK", "0")  # as torchrun sets them
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused(moebius("resume", trained / "runs" / "run"), 2, "4 processes were started")
