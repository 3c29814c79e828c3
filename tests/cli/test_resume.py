"""Tests of `moebius resume`."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.command_line import SECONDS, micro, refused, steps, write_text


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
        "step 4: alarm: layer ",
        "stopped as observe.cv.action says",
        f"`moebius resume {run}`",
    )
    assert "; state saved" in result.out and [
        path.name for path in (run / "checkpoints").iterdir()
    ] == ["step-00000004"]
    (event,) = (json.loads(line) for line in (run / "events.jsonl").read_text().splitlines())
    assert (event["step"], event["rule"], event["action"], event["done"]) == (
        4,
        "cv",
        "stop",
        "state saved",
    )
    assert not (run / "tb").exists()
    result = moebius(
        "resume", run, "--observe.cv.action", "off", "--observe.dead-expert.threshold", "0.02"
    )
    assert result.code == 0 and f"resuming {run} at step 4 of 10" in result.out
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
        (["gone", "--train.steps", "5"], "gone: there is no such directory"),
        (["--train.steps", "5"], "RUN is missing"),
        (["--train.steps", "5", "gone"], "'gone' was not expected here; RUN must come first"),
    ],
)
def test_words_that_are_not_understood(words, part, moebius):
    refused(moebius("resume", *words), 2, part)


def test_a_setting_that_does_not_exist(trained, moebius):
    run = trained / "runs" / "run"
    refused(moebius("resume", run, "--lr", "1e-3"), 2, "did you mean --train.lr")


def test_processes_that_torchrun_did_not_start_are_refused(trained, monkeypatch, moebius):
    monkeypatch.setenv("RANK", "0")  # torchrun also says where the processes meet
    monkeypatch.setenv("WORLD_SIZE", "4")
    run = trained / "runs" / "run"
    before = contents(run)
    refused(moebius("resume", run, "--train.steps", "20"), 2, "start with torchrun")
    assert contents(run) == before


def contents(run: Path) -> dict[Path, tuple[int, bytes]]:
    """Return the time and the contents of each file of a run."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file()
    }


def test_the_settings_of_a_resume_last(trained, tmp_path: Path, moebius):
    """This is what a user sees who resumes with more steps, stops, and resumes again."""
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "run", run)
    changed = moebius("resume", run, "--train.steps", "14", "--train.batch-size=4")
    assert changed.code == 0
    for line in ("train.steps 10 -> 14", "train.batch_size 2 -> 4"):
        assert f"changed from step 11 on: {line}\n" in changed.out
    assert "the learning rate jumps: step 11 has " in changed.out
    shutil.rmtree(run / "checkpoints" / "step-00000014")
    again = moebius("resume", run)
    assert "at step 12 of 14" in again.out and "changed from" not in again.out
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["tokens"] == 10 * 2 * 32 + 4 * 4 * 32


@pytest.mark.parametrize("flags", [[], ["--step", "10"], ["--train.steps", "10"]])
def test_a_finished_run_says_so_in_one_line_and_nothing_is_written(flags, trained, moebius):
    run = trained / "runs" / "run"
    before = contents(run)
    result = moebius("resume", run, *flags)
    assert (result.code, result.err) == (0, "") and contents(run) == before
    assert result.out == (
        f"{run} is finished: it is at step 10 of 10; `--train.steps` with a larger number trains "
        "it further\n"
    )


def test_settings_given_to_a_finished_run_are_said_to_be_lost(trained, moebius):
    run = trained / "runs" / "run"
    before = contents(run)
    result = moebius("resume", run, "--train.lr", "1", "--observe.cv.action", "off")
    assert result.code == 0 and contents(run) == before
    assert result.out.endswith("trains it further; not recorded: train.lr, observe.cv.action\n")


def test_fewer_steps_than_the_run_has_made(trained, moebius):
    run = trained / "runs" / "run"
    before = contents(run)
    refused(
        moebius("resume", run, "--train.steps", "9"), 2, "train.steps=9: the run is at step 10"
    )
    assert contents(run) == before


def test_a_step_without_a_checkpoint(trained, moebius):
    run = trained / "runs" / "run"
    for step in ("3", "-1"):
        result = moebius("resume", run, "--step", step)
        refused(result, 4, f"no checkpoint of step {step}; there are those of steps 4, 8, 10")
    refused(moebius("resume", run, "--step", "x"), 2, "--step: not an integer: ")
    refused(moebius("resume", run, "--steps", "20"), 2, "did you mean --train.steps")


def test_an_older_step(trained, tmp_path: Path, moebius):
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "run", run)
    result = moebius("resume", run, "--step", "8")
    assert result.code == 0 and "at step 8 of 10" in result.out
    (aside,) = run.glob("aside-*")
    assert (aside / "step-00000010").is_dir() and steps(aside) == [10]
    assert steps(run) == steps(trained / "runs" / "run")


@pytest.mark.parametrize("text", ["", "[model]\n", "\0" * 300])
def test_a_run_without_its_configuration(text, trained, tmp_path: Path, moebius):
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "run", run)
    (run / "config.toml").write_text(text)
    before = contents(run)
    refused(moebius("resume", run), 4, f"{run / 'config.toml'}: ", "restore config.toml from a")
    refused(moebius("generate", run), 4, f"{run / 'config.toml'}: ")
    assert contents(run) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_damaged_lines_do_not_end_a_run(name, trained, tmp_path: Path, moebius):
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "run", run)
    with (run / name).open("ab") as file:
        file.write(b"\0" * 300 + b"\ngarbage\n")
    result = moebius("resume", run, "--train.steps", "12")
    assert result.code == 0
    assert f"moebius: {run / name}: 2 damaged lines moved to {name}.damaged (lines" in result.err
    assert steps(run) == [2, 4, 5, 6, 8, 10, 12]


@pytest.mark.heavy
def test_a_run_that_is_still_trained_is_refused(tmp_path: Path, moebius):
    run = tmp_path / "runs" / "run"
    flags = micro(tmp_path, train__name="run", train__steps=100_000, train__checkpoint_every=5)
    first = subprocess.Popen(
        [sys.executable, "-m", "moebius", "train", "tiny", *flags], stdout=subprocess.DEVNULL
    )
    try:
        stop = time.monotonic() + SECONDS
        while not (run / "checkpoints").exists():
            assert first.poll() is None and time.monotonic() < stop
            time.sleep(0.05)
        result = moebius("resume", run, "--train.lr", "1")
        refused(
            result, 2, f"{run}: process {first.pid} on {os.uname().nodename} has been training"
        )
        assert moebius("generate", run, "--max-tokens", "1").code == 0
    finally:
        first.kill()
        first.wait(SECONDS)
    assert (run / ".lock").exists()
    assert "lr = 1.0" not in (run / "config.toml").read_text()
    newest = max(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*"))
    assert moebius("resume", run, "--train.steps", newest + 2).code == 0


def test_two_unnamed_runs_of_the_same_second(tmp_path: Path, monkeypatch, moebius):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260102-030405")
    for _ in range(2):
        assert moebius("train", "tiny", *micro(tmp_path, train__steps=1)).code == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["tiny-20260102-030405", "tiny-20260102-030405-2"]


def test_the_help_lists_what_may_change(moebius):
    shown = moebius("resume", "--help").out
    assert "--train.batch_size INT" in shown and "--step N" in shown and "--data.source" in shown
    assert not any(f"--{name}" in shown for name in ("train.seed", "model.dim", "data.weights"))


def test_a_checkpoint_under_another_step_s_name_does_not_end_a_run(
    trained, tmp_path: Path, moebius
):
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "run", run)
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    (run / "checkpoints" / "step-00000004").rename(run / "checkpoints" / "step-00000010")
    generated = moebius("generate", run, "--max-tokens", "1")
    assert "passed over" in generated.err and "this is the checkpoint of step 4" in generated.err
    result = moebius("resume", run)
    assert result.code == 0 and "finished" not in result.out
    assert "passed over" in result.out and f"resuming {run} at step 8 of 10" in result.out
    assert (run / "checkpoints" / "step-00000010.damaged").is_dir()


@pytest.mark.parametrize("setting", ["train__seed", "data__source", "model__router_top_k"])
def test_a_checkpoint_of_another_run_does_not_end_a_run(setting, trained, tmp_path: Path, moebius):
    """The weights of the other run would fit into the model."""
    run, text = tmp_path / "run", tmp_path / "text.txt"
    shutil.copytree(trained / "runs" / "run", run)
    write_text(text, lines=700)
    value = {"train__seed": 1, "data__source": text, "model__router_top_k": 2}[setting]
    flags = {"train__name": "other", "train__out": tmp_path, setting: value}
    assert moebius("train", "tiny", *micro(trained, **flags)).code == 0
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    other = tmp_path / "other" / "checkpoints" / "step-00000010"
    shutil.copytree(other, run / "checkpoints" / "step-00000010")
    before = contents(run)
    part = "another text" if setting == "data__source" else f"{setting.replace('__', '.')}={value}"
    for command in ("resume", "generate"):
        refused(moebius(command, run), 4, f"{run / 'checkpoints' / 'step-00000010'}: ", part)
    after = contents(run)
    after.pop(run / ".lock", None)  # until the error, which holds the session, is forgotten
    assert after == before


def test_a_run_without_its_record_does_not_forget_what_may_not_change(
    trained, tmp_path: Path, moebius
):
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "run", run)
    (run / "run.json").unlink()
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("\nseed = 0\n", "\nseed = 7\n"))
    refused(moebius("resume", run), 2, "train.seed=7: a resumed run keeps train.seed=0")
    result = moebius("generate", run)
    missing, refusal = result.err.splitlines()
    assert result.code == 4 and f"{run / 'run.json'}: missing (" in missing
    assert "train.seed=0, but the run has train.seed=7" in refusal
    (run / "config.toml").write_text(text)
    result = moebius("resume", run, "--train.steps", "12")
    assert result.code == 0 and f"{run / 'run.json'}: missing (" in result.out
    assert (run / "run.json").exists()


def test_words_that_are_not_a_run_but_near_one(trained, monkeypatch, moebius):
    monkeypatch.chdir(trained)
    refused(moebius("resume", "run"), 2, "run: there is no such directory; did you mean runs/run?")
    refused(moebius("generate", "runs"), 2, "runs: not a run directory", "runs/run")
    inside = "runs/run/checkpoints/step-00000004"
    refused(moebius("resume", inside), 2, f"{inside}: inside of a run", "itself, runs/run")
    refused(moebius("generate", "runs/run/config.toml"), 2, "itself, runs/run")
    refused(moebius("train", "runs/run"), 2, "`moebius resume runs/run` continues it")


def test_phases_can_be_added_to_a_runs_settings(trained, tmp_path, moebius):
    """The run had 10 steps of 64 tokens; the phases replace them."""
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "run", run)
    text = (run / "config.toml").read_text()
    phases = "\n[[train.phases]]\nuntil = 800\n"
    (run / "config.toml").write_text(text.replace("steps = 10\n", "steps = 11\n") + phases)
    refused(moebius("resume", run), 2, "train.steps=11: follows from train.phases")
    (run / "config.toml").write_text(text + phases)
    result = moebius("resume", run)
    assert result.code == 0, result
    assert "at step 10 of 13" in result.out
    written = (run / "config.toml").read_text()
    assert "[[train.phases]]" in written and "\nsteps = " not in written
    assert moebius("generate", run, "--max-tokens", "1").code == 0
