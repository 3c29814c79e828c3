"""The first signal is recorded; a second one, or a step that never ends, ends the process."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from moebius.errors import Interrupted, StorageError
from moebius.train import checkpoint
from moebius.train.signals import ECHO_SECONDS, StopSignals

SCRIPT = """
import errno, os, signal, sys, time
from pathlib import Path
from moebius.train import signals
from moebius.train.signals import StopSignals
with StopSignals(Path({checkpoints!r}), grace_seconds={grace}) as stop:
    os.kill(os.getpid(), {first})
    assert stop.requested == {first}
    {then}
    print("went on", flush=True)
"""


def run_alone(
    first: int, then: str, grace: float = 20.0, checkpoints: str = ""
) -> subprocess.CompletedProcess[str]:
    """Send a signal to a separate process, which then runs a line of code; return its result."""
    code = SCRIPT.format(first=int(first), then=then, grace=grace, checkpoints=checkpoints)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        # whatever the tests were started with
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def send(*numbers: int) -> str:
    """Return the line of code that sends these signals to its own process."""
    return "; ".join(f"os.kill(os.getpid(), {int(number)})" for number in numbers)


@pytest.fixture(autouse=True)
def sighup_is_not_ignored() -> Iterator[None]:
    """Run the tests as on a terminal, even if they were started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def checkpoints(tmp_path) -> str:
    """A folder with two checkpoints, and one that is still being written."""
    for step in (4, 8):
        checkpoint.save(tmp_path / f"step-{step:08d}", {"model": {}}, {})
    (tmp_path / ".step-00000012.partial").mkdir()
    return str(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted(number, tmp_path):
    before = signal.getsignal(number)
    with StopSignals(tmp_path) as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number and not stop.reason
    assert signal.getsignal(number) is before


def test_a_signal_that_torchrun_passes_on_is_not_a_second_one(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    left: list[int] = []
    with StopSignals(tmp_path) as stop:
        monkeypatch.setattr(stop, "_leave", lambda number, reason: left.append(number))
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM and not left
        later = time.monotonic() + ECHO_SECONDS + 0.1
        monkeypatch.setattr(time, "monotonic", lambda: later)
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == [signal.SIGTERM]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "second", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.heavy)]
)
def test_the_second_signal_ends_the_process_at_once(first, second, checkpoints):
    done = run_alone(first, send(second), checkpoints=checkpoints)
    assert done.returncode == 128 + second
    assert "went on" not in done.stdout
    assert done.stderr.strip() == (
        "moebius: stopped at once by a second signal; the last good checkpoint is step 8"
    )


@pytest.mark.parametrize("folder", ["", pytest.param("gone", marks=pytest.mark.heavy)])
def test_before_the_first_checkpoint_nothing_is_said_to_be_saved(folder, tmp_path):
    done = run_alone(signal.SIGTERM, send(signal.SIGTERM), checkpoints=str(tmp_path / folder))
    assert done.returncode == 143
    assert done.stderr.strip().endswith("second signal; there is no checkpoint yet")


def test_a_disk_that_hangs_does_not_delay_the_end(tmp_path):
    hang = "signals.last_good = lambda folder: time.sleep(30); "
    start = time.perf_counter()
    done = run_alone(signal.SIGTERM, hang + send(signal.SIGTERM), checkpoints=str(tmp_path))
    assert done.returncode == 143 and time.perf_counter() - start < 25
    assert done.stderr.strip().endswith("second signal; the disk does not answer")


def test_an_error_after_a_signal_says_that_there_was_one(tmp_path):
    with pytest.raises(StorageError) as refusal, StopSignals(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
        raise StorageError("full")
    assert refusal.value.__notes__ == ["SIGTERM had asked the run to stop"]
    with pytest.raises(Interrupted) as interruption, StopSignals(tmp_path):
        os.kill(os.getpid(), signal.SIGINT)
        raise Interrupted("stopped", signal.SIGINT)
    assert not hasattr(interruption.value, "__notes__")
    with pytest.raises(StorageError) as refusal, StopSignals(tmp_path):
        raise StorageError("full")
    assert not hasattr(refusal.value, "__notes__")


HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("first", "others", "code"),
    [
        pytest.param(HUP, [HUP], None, marks=pytest.mark.heavy),
        pytest.param(HUP, [TERM], None, marks=pytest.mark.heavy),
        (TERM, [HUP, HUP], None),
        (HUP, [TERM, HUP], None),
        (HUP, [TERM, INT], 128 + INT),
        (TERM, [HUP, TERM], 128 + TERM),
    ],
)
@pytest.mark.heavy
def test_a_closing_terminal_is_not_in_a_hurry(first, others, code):
    """It may send SIGHUP twice, and SIGTERM with it, though nobody pressed Ctrl-C twice."""
    done = run_alone(first, send(*others))
    assert done.returncode == (code or 0)
    assert ("went on" in done.stdout) == (code is None)


def test_a_step_that_does_not_end_is_left():
    start = time.perf_counter()
    done = run_alone(signal.SIGTERM, "time.sleep(30)", grace=0.5)
    assert done.returncode == 143 and "did not end within 0.5 s" in done.stderr
    assert time.perf_counter() - start < 20


@pytest.mark.heavy
@pytest.mark.parametrize("closing", ["os.close(2)", "sys.stderr = None; os.close(2)"])
def test_a_step_that_does_not_end_is_left_without_a_terminal_too(closing):
    done = run_alone(signal.SIGHUP, f"{closing}; time.sleep(30)", grace=0.5)
    assert done.returncode == 129


@pytest.mark.heavy
def test_once_heeded_there_is_time_for_saving():
    done = run_alone(signal.SIGTERM, "stop.heeded(); time.sleep(1)", grace=0.3)
    assert done.returncode == 0 and "went on" in done.stdout


@pytest.mark.heavy
def test_output_that_is_lost_during_saving_does_not_end_it():
    """The countdown of a step must not begin again."""
    code = (
        "stop.heeded(); stop.requested = None; "
        "stop.output_lost(BrokenPipeError(errno.EPIPE, 'x')); time.sleep(1)"
    )
    done = run_alone(signal.SIGTERM, code, grace=0.3)
    assert done.returncode == 0 and "went on" in done.stdout


@pytest.mark.parametrize(
    ("error", "number", "reason"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), signal.SIGPIPE, "(Broken pipe)"),
        (OSError(errno.EIO, "Input/output error"), signal.SIGHUP, "(Input/output error)"),
        (OSError(errno.ENOSPC, "No space left"), signal.SIGPIPE, "(No space left)"),
        (ValueError("I/O operation on closed file."), signal.SIGPIPE, "(I/O operation on"),
    ],
)
def test_output_that_is_lost_stops_the_run(error, number, reason, tmp_path):
    with StopSignals(tmp_path) as stop:
        stop.output_lost(error)
        stop.output_lost(error)  # once more: not a second signal
        assert stop.requested == number and reason in stop.reason


def test_under_nohup_a_terminal_that_is_gone_stops_nothing(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals(tmp_path) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        stop.output_lost(OSError(errno.EIO, "Input/output error"))
        assert stop.requested is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        stop.output_lost(BrokenPipeError(errno.EPIPE, "Broken pipe"))  # not a terminal
        assert stop.requested == signal.SIGPIPE
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
