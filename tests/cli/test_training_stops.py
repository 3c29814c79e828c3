"""A run whose terminal is closed, or whose output nobody reads any more, loses no step.

Each test starts `moebius train` as a process of its own, on a pipe or on a terminal.
"""

import errno
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_line import SECONDS, micro, steps

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(trained, tmp_path) -> Iterator[Start]:
    """A function that starts to train a run that would not end by itself."""
    started: list[subprocess.Popen[str]] = []

    def call(**options: Any) -> "subprocess.Popen[str]":
        flags = micro(
            trained,
            train__name="run",
            train__out=tmp_path,
            train__steps=10**6,
            train__checkpoint_every=10**6,
            train__eval_every=0,
            train__log_every=1,
        )
        command = [sys.executable, "-m", "moebius", "train", "tiny", *flags]
        defaults = {
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.PIPE,
            "text": True,
            # whatever the tests were started with
            "preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        }
        started.append(subprocess.Popen(command, **(defaults | options)))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.wait(SECONDS)
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()


def wait_until(is_true: Callable[[], bool]) -> None:
    stop = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < stop
        time.sleep(0.05)


def logged(run: Path) -> list[int]:
    """Return the steps that the run has logged so far."""
    try:
        return steps(run)
    except (FileNotFoundError, json.JSONDecodeError):  # not there, or a line half written
        return []


def read_until_a_step(output: int) -> None:
    """Read what is shown on a terminal or in a pipe until a step is among it."""
    shown, stop = b"", time.monotonic() + SECONDS
    while b"tok/s" not in shown:
        assert select.select([output], [], [], stop - time.monotonic())[0], shown
        part = os.read(output, 4096)
        assert part, shown  # the process has ended
        shown += part


def saved_step(run: Path) -> int:
    """Return the step of the run's only checkpoint, which must be that of its last metrics."""
    (folder,) = (run / "checkpoints").iterdir()
    step = int(folder.name.removeprefix("step-"))
    assert step == steps(run)[-1] > 0
    return step


@pytest.mark.heavy
def test_a_run_piped_into_head_saves_its_state_and_can_be_resumed(start, tmp_path, moebius):
    process = start(stdout=subprocess.PIPE)
    assert process.stdout
    read_until_a_step(process.stdout.fileno())
    process.stdout.close()
    assert process.wait(SECONDS) == 141
    step = saved_step(tmp_path / "run")
    message = f"moebius: stopped at step {step}, because its output could not be written (Broken"
    assert process.stderr and process.stderr.read().startswith(message)

    resumed = moebius("resume", tmp_path / "run", "--train.steps", step + 1)
    assert resumed.code == 0 and f"at step {step:,} of" in resumed.out
    assert steps(tmp_path / "run") == list(range(1, step + 2))


@pytest.mark.heavy
def test_a_pipe_that_is_closed_during_the_summary_stops_after_the_first_step(start, tmp_path):
    """As in `moebius train 2>&1 | true`: the message has nowhere to go either."""
    process = start(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    process.stdout.close()
    assert process.wait(SECONDS) == 141
    assert saved_step(tmp_path / "run") == 1


@pytest.mark.heavy
@pytest.mark.parametrize("is_controlling", [True, False])
def test_a_terminal_that_is_closed_is_a_hangup(start, tmp_path, is_controlling):
    """A controlling terminal sends SIGHUP, and writing to it fails; another only does the latter.

    With a progress bar, the thread that draws it is the first to notice.
    """
    master, slave = pty.openpty()

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.setsid()
        if is_controlling:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    process = start(stdout=slave, preexec_fn=take_terminal)
    os.close(slave)
    read_until_a_step(master)
    os.close(master)
    assert process.wait(SECONDS) == 129
    assert saved_step(tmp_path / "run") > 0
    assert process.stderr and "moebius: stopped at step" in process.stderr.read()


def test_sighup_saves_the_state_even_if_it_comes_twice_or_with_sigterm(start, tmp_path):
    process = start(stdout=subprocess.DEVNULL)
    wait_until(lambda: bool(logged(tmp_path / "run")))
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    assert process.wait(SECONDS) == 129
    saved_step(tmp_path / "run")


@pytest.mark.heavy
def test_under_nohup_a_run_outlives_its_terminal(start, tmp_path):
    master, slave = pty.openpty()
    process = start(
        stdout=slave,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(slave)
    read_until_a_step(master)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    step = logged(tmp_path / "run")[-1]
    wait_until(lambda: logged(tmp_path / "run")[-1] > step + 3)
    process.terminate()
    assert process.wait(SECONDS) == 143
    saved_step(tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.heavy
def test_a_full_disk_under_the_output_is_named(start, tmp_path):
    with Path("/dev/full").open("w") as full:
        process = start(stdout=full)
    assert process.wait(SECONDS) == 141
    assert saved_step(tmp_path / "run") == 1
    assert process.stderr and os.strerror(errno.ENOSPC) in process.stderr.read()


@pytest.mark.parametrize(
    ("closed", "code"), [("0<&- 2>&-", 0), ("0<&- 1>&- 2>&-", 6), ("1>&-", 6)]
)
def test_only_a_stdout_that_was_closed_from_the_start_is_refused(closed, code, trained):
    words = [sys.executable, "-m", "moebius", "data", "tiny", *micro(trained)]
    command = ["sh", "-c", f'"$@" {closed}', "sh", *words]
    done = subprocess.run(command, check=False, capture_output=True, timeout=SECONDS)
    assert done.returncode == code
