"""The clock of training time, with a fake time that the test advances."""

import pytest
import torch

from moebius.train import clock
from moebius.train.clock import Clock

CPU = torch.device("cpu")


class Time:
    """A fake time in seconds, which only changes when a test advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch) -> Time:
    """The time that every Clock of the test reads."""
    moved = Time()
    monkeypatch.setattr(clock, "time", moved)
    return moved


def test_a_new_clock_runs(time):
    stopwatch = Clock(CPU)
    time.passes(3.0)
    assert stopwatch.lap() == 3.0


def test_a_lap_stops_the_clock_and_begins_at_zero(time):
    stopwatch = Clock(CPU)
    time.passes(3.0)
    stopwatch.lap()
    time.passes(50.0)
    assert stopwatch.lap() == 0.0
    stopwatch.go_on()
    time.passes(2.0)
    assert stopwatch.lap() == 2.0


def test_what_happens_during_a_pause_is_not_counted(time):
    stopwatch = Clock(CPU)
    time.passes(1.0)
    stopwatch.pause()
    time.passes(50.0)
    stopwatch.go_on()
    time.passes(2.0)
    stopwatch.pause()
    time.passes(50.0)
    assert stopwatch.lap() == 3.0


def test_pausing_and_going_on_twice_is_the_same_as_once(time):
    stopwatch = Clock(CPU)
    time.passes(1.0)
    stopwatch.pause()
    time.passes(50.0)
    stopwatch.pause()
    stopwatch.go_on()
    time.passes(2.0)
    stopwatch.go_on()
    time.passes(4.0)
    assert stopwatch.lap() == 7.0


def test_stopping_waits_for_the_device(time, monkeypatch):
    """The work that is still queued on the device belongs to the earlier steps."""
    devices: list[torch.device] = []

    def wait(device: torch.device) -> None:
        devices.append(device)
        time.passes(5.0)

    monkeypatch.setattr(clock, "wait", wait)
    stopwatch = Clock(CPU)
    time.passes(1.0)
    stopwatch.pause()
    stopwatch.pause()
    assert stopwatch.lap() == 6.0
    assert devices == [CPU]
