"""Variants at work: in processes of their own, in turns, through failures."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moebius.cli import main
from moebius.config import Config
from moebius.errors import ConfigError
from moebius.profile.ablate import run as ablating
from moebius.profile.ablate.report import as_json, lines
from moebius.profile.ablate.run import Plan, ablate
from moebius.profile.ablate.variants import variants
from moebius.profile.ablate.worker import Worker, WorkerFailed
from moebius.settings import to_toml


def silent(line: str) -> None:
    pass


@pytest.fixture
def few(small: Config, monkeypatch) -> Config:
    """Learns in a second, evaluated on little."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return replace(small, train=replace(small.train, eval_tokens=500))


@pytest.fixture
def workers(monkeypatch) -> list[Worker]:
    """All that a test starts."""
    made: list[Worker] = []

    class Watched(Worker):
        def __init__(self, config: Config):
            super().__init__(config)
            made.append(self)

    monkeypatch.setattr(ablating, "Worker", Watched)
    return made


def test_variants_run_in_turns_and_learn_on_the_same_text(few, workers):
    given = variants(few, ["model.base_expansion=0,2"], twin=True)
    found = ablate(given, Plan(seconds=1.0, rounds=3, learn=8, seeds=2), silent)
    assert [outcome.problem for outcome in found.outcomes] == ["", "", ""]
    for outcome in found.outcomes:
        assert len(outcome.rounds) == 3 and outcome.peak_bytes > 1e6
        assert len(outcome.curves) == 2
        assert [point.step for point in outcome.curves[0]] == [1, 2, 3, 4, 6, 7, 8]
        assert outcome.curves[0][-1].loss < outcome.curves[0][0].loss
    text = "\n".join(lines(found))
    assert "held-out bits per byte after so many tokens, mean of 2 seeds" in text
    assert "against its twin" in text and "comes on top" in text
    values = json.loads(as_json(found))
    assert [len(each["rounds"]) for each in values["variants"]] == [3, 3, 3]
    assert values["variants"][1]["equal_tokens"]["tokens"] == 8 * 4 * 32
    assert len(workers) == 6 and all(worker.process.poll() is not None for worker in workers)


def test_the_same_seed_learns_the_same_whoever_runs_beside_it(few):
    alone = ablate(variants(few, ["model.num_experts=3"]), Plan(seconds=0.1, rounds=3, learn=4), silent)
    beside = ablate(variants(few, ["model.num_experts=2"]), Plan(seconds=0.1, rounds=3, learn=4), silent)
    assert alone.outcomes[0].curves == beside.outcomes[0].curves


def test_a_variant_that_cannot_be_made_is_a_row_that_says_why(few):
    found = ablate(variants(few, ["model.router_top_k=1,7"]), Plan(seconds=0.1, rounds=3), silent)
    assert not found.outcomes[0].problem
    assert "router_top_k" in found.outcomes[1].problem
    assert any("router_top_k" in line for line in lines(found)[:3])


def test_a_worker_that_is_killed_is_a_row_that_says_so(few, workers):
    def kill_the_second(line: str) -> None:
        if line.startswith("round 2"):
            workers[1].process.kill()

    found = ablate(variants(few, ["model.num_experts=2"]), Plan(seconds=0.1, rounds=4), kill_the_second)
    assert not found.outcomes[0].problem and len(found.outcomes[0].rounds) == 4
    assert "killed by SIGKILL" in found.outcomes[1].problem


def test_an_interrupt_leaves_no_process_behind(few, workers):
    def interrupt(line: str) -> None:
        if line.startswith("round 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(variants(few, ["model.num_experts=2"]), Plan(seconds=0.1, rounds=3), interrupt)
    assert len(workers) == 2 and all(worker.process.poll() is not None for worker in workers)


def test_a_worker_ends_with_its_owner(few, tmp_path):
    """Whatever ends the owner: the pipe's end reaches the worker."""
    (tmp_path / "config.toml").write_text(to_toml(few))
    code = """if True:
        import os, sys
        from moebius.profile.ablate.worker import Worker
        from moebius.settings import read_config
        worker = Worker(read_config(sys.argv[1], []))
        worker.ask("start")
        print(worker.process.pid, flush=True)
        os.kill(os.getpid(), 9)"""
    owner = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.toml")], capture_output=True, text=True, check=False
    )
    assert owner.returncode == -signal.SIGKILL, owner.stderr
    worker = Path(f"/proc/{int(owner.stdout)}")
    stop = time.monotonic() + 20
    while worker.exists() and (worker / "stat").read_text().split(") ")[1][0] != "Z":
        assert time.monotonic() < stop
        time.sleep(0.05)


def test_a_worker_says_what_went_wrong_in_one_line(few):
    worker = Worker(few)
    try:
        with pytest.raises(WorkerFailed, match="AttributeError"):
            worker.ask("nothing_like_that")
        assert worker.ask("start")["seconds"] > 0
    finally:
        worker.end()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.process.pid, 0)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rounds": -1}, "--rounds -1"),
        ({"seconds": float("nan")}, "--seconds nan"),
        ({"learn": -5}, "--learn -5"),
        ({"learn_seconds": -1.0}, "--learn-seconds -1"),
        ({"learn": 5, "learn_seconds": 1.0}, "one of them"),
        ({"seeds": 0, "learn": 5}, "--seeds 0"),
        ({"seeds": 2}, "--learn STEPS"),
    ],
)
def test_a_plan_that_makes_no_sense(values, says):
    with pytest.raises(ConfigError, match=says):
        Plan(**values)


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        main(["ablate", *arguments])
    return stopped.value.code


def test_the_command(few, tmp_path, capsys):
    file = tmp_path / "few.toml"
    file.write_text(to_toml(few))
    assert run(str(file), "--over", "train.batch_size=2", "--seconds", "0.2", "--rounds", "3", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in values["variants"]] == ["as given", "batch_size=2"]
    assert values["variants"][1]["tokens_per_second"] > 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--over", "model.dims=3"], "model.dim"),
        (["--over", "model.dim=3,x"], "'x'"),
        (["--over", "observe.progress=true"], "observe"),
        (["--over", "model.dim"], "model.dim"),
        (["--rounds", "few"], "--rounds"),
        (["nothing.toml"], "nothing.toml"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
