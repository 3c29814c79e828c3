"""Tests of the clocks, on made-up launches and on a real GPU."""

import time

import pytest
import torch

from moebius.profile.clocks import (
    Call,
    DeviceClock,
    HostClock,
    Kernel,
    Mark,
    attributed,
    busy_seconds,
)

MARKS = [
    Mark(0, ("data",), "forward"),
    Mark(100, ("norms", "rotary"), "forward"),
    Mark(200, ("router",), "backward"),
]


def seconds(*nanoseconds: int) -> list[float]:
    """Return nanoseconds as seconds."""
    return [each / 1e9 for each in nanoseconds]


def test_the_host_clock_counts_the_time_from_mark_to_mark(monkeypatch):
    ticks = iter((3.0, 5.0, 6.0, 10.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    clock = HostClock()
    clock.start()
    for name in ("a", "b", "a"):
        clock.mark((name,), "forward")
    assert clock.stop() == [
        (("a",), "forward", 2.0),
        (("b",), "forward", 1.0),
        (("a",), "forward", 4.0),
    ]


def test_a_kernel_belongs_to_the_last_mark_before_its_launch_however_late_it_runs():
    kernels = [Kernel(1000, 1010, 7), Kernel(1010, 1030, 8), Kernel(1030, 1060, 9)]
    stretches = attributed(MARKS, {7: 50, 8: 150, 9: 250}, kernels)
    assert [stretch[:2] for stretch in stretches] == [
        (("data",), "forward"),
        (("norms", "rotary"), "forward"),
        (("router",), "backward"),
    ]
    assert [stretch.seconds for stretch in stretches] == pytest.approx(seconds(10, 20, 30))


def test_a_gap_is_time_that_the_kernel_after_it_waits():
    stretches = attributed(MARKS, {7: 50, 9: 250}, [Kernel(1000, 1010, 7), Kernel(1025, 1030, 9)])
    assert [stretch[:2] for stretch in stretches] == [
        (("data",), "forward"),
        (("router",), "waiting"),
        (("router",), "backward"),
    ]
    assert [stretch.seconds for stretch in stretches] == pytest.approx(seconds(10, 15, 5))


def test_time_that_kernels_share_counts_once():
    kernels = [Kernel(0, 100, 7), Kernel(20, 60, 8), Kernel(90, 130, 9)]
    stretches = attributed(MARKS, {7: 50, 8: 150, 9: 250}, kernels)
    assert [stretch.seconds for stretch in stretches] == pytest.approx(seconds(100, 30))


def test_without_kernels_there_is_no_time():
    assert attributed(MARKS, {}, []) == []


def test_the_host_is_busy_between_calls_but_not_while_it_waits_in_one():
    calls = {
        7: Call(100, 105),
        8: Call(110, 115),
        9: Call(140, 1140),
        10: Call(1150, 1155),
        11: Call(1160, 9999),  # launches nothing: it waits for the device at the end
    }
    kernels = [Kernel(0, 1, launch) for launch in (7, 8, 9, 10)]
    between, launches = (5, 25, 10, 5), 5 * 5
    assert busy_seconds(calls, kernels) == pytest.approx(sum(seconds(*between, launches)))
    assert busy_seconds({11: Call(0, 10)}, kernels[:1]) == 0


@pytest.mark.gpu
def test_the_device_clock_counts_each_kernel_for_its_mark():
    device = torch.device("cuda")
    big, small = torch.ones(8192, 8192, device=device), torch.ones(64, 64, device=device)
    big.matmul(big)
    clock = DeviceClock(device)
    clock.start()
    clock.mark(("norms",), "forward")
    small.matmul(small)
    clock.mark(("experts",), "backward")
    big.matmul(big)
    clock.mark(("rest",), "forward")
    stretches = clock.stop()

    def busy(name: str) -> float:
        return sum(
            stretch.seconds
            for stretch in stretches
            if stretch.components == (name,) and stretch.direction != "waiting"
        )

    assert busy("experts") > 100 * busy("norms") > 0
    assert {stretch.components for stretch in stretches} == {("norms",), ("experts",)}
    assert 0 < clock.host_seconds < 0.01  # the waiting time in `stop` does not count
