"""The first signal is recorded; a second one, or a step that never ends, ends the process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from moebius.errors import Interrupted, StorageError
from moebius.train.signals import StopSignals

SCRIPT = """
import os, signal, time
from moebius.train.signals import StopSignals
with StopSignals(grace_seconds={grace}) as stop:
    os.kill(os.getpid(), {first})
    assert stop.requested == {first}
    {then}
    print("went on", flush=True)
"""
LAST_WORDS = """
import os, time
from pathlib import Path
from moebius.train import checkpoint, signals
from moebius.train.checkpoint_store import last_good
checkpoints = Path({folder!r})
if {is_saved}:
    checkpoint.save(checkpoints / "step-00000006", {{"model": {{}}}}, {{}})
with signals.StopSignals(last_words={last_words}):
    os.kill(os.getpid(), 15)
    os.kill(os.getpid(), 15)
    print("went on", flush=True)
"""


def run_alone(first: int, then: str, grace: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Send a signal to a separate process, which then runs a line of code; return its result."""
    code = SCRIPT.format(first=int(first), then=then, grace=grace)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_at_once(first, second):
    done = run_alone(first, f"os.kill(os.getpid(), {int(second)})")
    assert done.returncode == 128 + second
    assert "went on" not in done.stdout
    assert done.stderr.strip() == "moebius: stopped at once by a second signal"


@pytest.mark.parametrize(
    ("is_saved", "last_words", "end"),
    [
        (False, "lambda: last_good(checkpoints)", "there is no checkpoint yet"),
        (True, "lambda: last_good(checkpoints)", "the last good checkpoint is step 6"),
        (True, "lambda: time.sleep(30)", "the disk does not answer"),
    ],
)
def test_the_second_signal_says_which_checkpoint_there_is(tmp_path, is_saved, last_words, end):
    start = time.perf_counter()
    code = LAST_WORDS.format(folder=str(tmp_path), is_saved=is_saved, last_words=last_words)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 143 and "went on" not in done.stdout
    assert done.stderr.strip() == f"moebius: stopped at once by a second signal; {end}"
    assert time.perf_counter() - start < 25


def test_an_error_after_a_signal_says_that_there_was_one():
    with pytest.raises(StorageError) as refusal, StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        raise StorageError("full")
    assert refusal.value.__notes__ == ["SIGTERM had asked the run to stop"]
    with pytest.raises(Interrupted) as interruption, StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        raise Interrupted("stopped", signal.SIGINT)
    assert not hasattr(interruption.value, "__notes__")
    with pytest.raises(StorageError) as refusal, StopSignals():
        raise StorageError("full")
    assert not hasattr(refusal.value, "__notes__")


def test_a_step_that_does_not_end_is_left():
    start = time.perf_counter()
    done = run_alone(signal.SIGTERM, "time.sleep(30)", grace=0.5)
    assert done.returncode == 143 and "did not end within 0.5 s" in done.stderr
    assert time.perf_counter() - start < 20


def test_once_heeded_there_is_time_for_saving():
    done = run_alone(signal.SIGTERM, "stop.heeded(); time.sleep(1)", grace=0.3)
    assert done.returncode == 0 and "went on" in done.stdout
