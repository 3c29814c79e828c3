"""`moebius train` with several processes: one run, one voice, and one end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.command_line import losses, metrics, micro

TIMEOUT = 240
SLOW = {"train__steps": 100_000, "train__log_every": 1, "train__eval_every": 0}


@contextmanager
def started(*commands: list[str], **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start one process for each command as torchrun does, and kill those that are left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(commands))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "moebius", *command],
            env=os.environ
            | meeting
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Return the exit code, the output and the errors of each process."""
    texts = [process.communicate(timeout=TIMEOUT) for process in processes]
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def wait_for_steps(run: Path, count: int) -> None:
    """Wait until a run has logged that many steps."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.1)
    raise AssertionError("no step in time")


def test_two_processes_train_one_run(tmp_path, moebius):
    """The experts are split and the other weights sharded; one process goes back to step 4."""
    shape = {"model__num_experts": 4, "train__steps": 6, "train__log_every": 1}
    layout = {"parallel__shard": 2, "parallel__expert": 2}
    command = ["train", "tiny", *micro(tmp_path, train__name="two", **shape, **layout)]
    with started(command, command) as processes:
        (code, out, err), (peers_code, peers_out, peers_err) = ended(processes)
    assert (code, peers_code) == (0, 0), err + peers_err
    assert "step 6/6" in out and (peers_out, peers_err) == ("", "")
    two, one = tmp_path / "runs" / "two", tmp_path / "runs" / "one"
    (machine,) = [json.loads(x) for x in (two / "environment.jsonl").read_text().splitlines()]
    assert machine["processes"] == 2
    # each process has one of the two sequences
    flags = micro(tmp_path, train__name="one", train__micro_batch_size=1, **shape)
    assert moebius("train", "tiny", *flags).code == 0
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    flags = ["--parallel.shard", "1", "--parallel.expert", "1"]
    resumed = moebius("resume", str(two), "--step", "4", *flags)
    assert resumed.code == 0, resumed.err
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.heavy
def test_a_rank_with_another_configuration_is_named(tmp_path):
    commands = [
        ["train", "tiny", *micro(tmp_path, train__name="other", train__lr=lr)] for lr in (0.1, 0.2)
    ]
    with started(*commands) as processes:
        (code, _, err), (peers_code, _, peers_err) = ended(processes)
    assert (code, peers_code, peers_err) == (2, 2, "")
    assert "rank 1 on " in err and "train.lr=0.2" in err and err.count("\n") == 1
    assert not (tmp_path / "runs" / "other").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_whose_peer_died_ends_with_7_and_names_it(tmp_path, victim):
    command = ["train", "tiny", *micro(tmp_path, train__name="killed", **SLOW)]
    with started(command, command) as processes:
        wait_for_steps(tmp_path / "runs" / "killed", 3)
        processes[victim].kill()
        processes[victim].wait(TIMEOUT)
        begin = time.monotonic()
        survivor = processes[1 - victim]
        _, err = survivor.communicate(timeout=TIMEOUT)
        assert time.monotonic() - begin < 10
        assert survivor.returncode == 7
        assert f"rank {victim} on " in err and "has ended" in err


@pytest.mark.heavy
def test_a_process_that_hangs_ends_the_others_in_time(tmp_path):
    flags = micro(tmp_path, train__name="hanging", parallel__timeout=10, **SLOW)
    command = ["train", "tiny", *flags]
    with started(command, command) as processes:
        wait_for_steps(tmp_path / "runs" / "hanging", 3)
        processes[1].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        _, err = processes[0].communicate(timeout=TIMEOUT)
        assert time.monotonic() - begin < 10 + 10
        assert processes[0].returncode == 7 and "parallel.timeout" in err


@pytest.mark.heavy
@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)])
def test_sigterm_to_some_processes_stops_all_with_the_state_saved(tmp_path, asked):
    command = ["train", "tiny", *micro(tmp_path, train__name="stopped", **SLOW)]
    run = tmp_path / "runs" / "stopped"
    with started(command, command) as processes:
        wait_for_steps(run, 3)
        for rank in asked:
            processes[rank].send_signal(signal.SIGTERM)
        (code, _, err), (peers_code, _, peers_err) = ended(processes)
    assert (code, peers_code, peers_err) == (143, 143, "")
    assert "state saved" in err and err.count("\n") == 1
    last = metrics(run)[-1]["step"]
    assert (run / "checkpoints" / f"step-{last:08d}").is_dir()


@pytest.mark.heavy
def test_a_checkpoint_that_cannot_be_written_ends_all_processes(tmp_path):
    flags = micro(tmp_path, train__name="full", train__checkpoint_every=2, **SLOW)
    command = ["train", "tiny", *flags]
    run = tmp_path / "runs" / "full"
    with started(command, command) as processes:
        wait_for_steps(run, 1)
        for folder in run.glob("checkpoints"):
            folder.rename(run / "moved")
        (run / "checkpoints").write_text("in the way")
        (code, _, err), (peers_code, *_) = ended(processes)
    assert (code, peers_code) == (6, 6) and "checkpoints" in err
