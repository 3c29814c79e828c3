"""The first signal is recorded; a second one, or a step that never ends, ends the process."""

import os
import signal
import subprocess
import sys
import time

import pytest

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
    message = "moebius: stopped at once by a second signal; the last checkpoint is unharmed"
    assert done.stderr.strip() == message


def test_a_step_that_does_not_end_is_left():
    start = time.perf_counter()
    done = run_alone(signal.SIGTERM, "time.sleep(30)", grace=0.5)
    assert done.returncode == 143 and "did not end within 0.5 s" in done.stderr
    assert time.perf_counter() - start < 20


def test_once_heeded_there_is_time_for_saving():
    done = run_alone(signal.SIGTERM, "stop.heeded(); time.sleep(1)", grace=0.3)
    assert done.returncode == 0 and "went on" in done.stdout
