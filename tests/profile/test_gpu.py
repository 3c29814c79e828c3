"""Kernels and whose they are, on made-up launches; and what a real GPU reports."""

import pytest
import torch

from moebius.profile.gpu import Call, DeviceClock, Kernel, attributed, busy_seconds, usage

MARKS = [(0, (("data",), "forward")), (100, (("norms", "rotary"), "forward")), (200, (("router",), "backward"))]


def seconds(*nanoseconds: int) -> list[float]:
    return [each / 1e9 for each in nanoseconds]


def test_a_kernel_belongs_to_the_last_mark_before_its_launch_however_late_it_runs():
    found = attributed(MARKS, {7: 50, 8: 150, 9: 250}, [Kernel(1000, 1010, 7), Kernel(1010, 1030, 8), Kernel(1030, 1060, 9)])
    assert [(owner, direction) for owner, direction, _ in found] == [
        (("data",), "forward"),
        (("norms", "rotary"), "forward"),
        (("router",), "backward"),
    ]
    assert [took for _, _, took in found] == pytest.approx(seconds(10, 20, 30))


def test_a_gap_is_the_wait_of_what_comes_after_it():
    found = attributed(MARKS, {7: 50, 9: 250}, [Kernel(1000, 1010, 7), Kernel(1025, 1030, 9)])
    assert [(owner, direction) for owner, direction, _ in found] == [
        (("data",), "forward"),
        (("router",), "waiting"),
        (("router",), "backward"),
    ]
    assert [took for _, _, took in found] == pytest.approx(seconds(10, 15, 5))


def test_time_that_kernels_share_counts_once():
    kernels = [Kernel(0, 100, 7), Kernel(20, 60, 8), Kernel(90, 130, 9)]
    found = attributed(MARKS, {7: 50, 8: 150, 9: 250}, kernels)
    assert sum(took for _, _, took in found) == pytest.approx(130 / 1e9)
    assert [took for _, _, took in found] == pytest.approx(seconds(100, 30))


def test_no_kernels_no_time():
    assert attributed(MARKS, {}, []) == []


def test_the_host_is_busy_between_calls_but_not_while_it_waits_in_one():
    calls = {7: Call(100, 105), 8: Call(110, 115), 9: Call(140, 1140), 10: Call(1150, 1155), 11: Call(1160, 9999)}
    kernels = [Kernel(0, 1, launch) for launch in (7, 8, 9, 10)]  # 11 waits for the device at the end
    assert busy_seconds(calls, kernels) == pytest.approx(sum(seconds(5, 25, 10, 5, 5 * 5)))
    assert busy_seconds({11: Call(0, 10)}, kernels[:1]) == 0


@pytest.mark.gpu
def test_the_device_clock_finds_each_kernel_under_its_mark():
    device = torch.device("cuda")
    big, small = torch.ones(8192, 8192, device=device), torch.ones(64, 64, device=device)
    big.matmul(big)
    names = ("norms", "experts")
    clock = DeviceClock(device)
    clock.start()
    clock.mark(("norms",), "forward")
    small.matmul(small)
    clock.mark(("experts",), "backward")
    big.matmul(big)
    clock.mark(("rest",), "forward")
    found = clock.stop()
    small_one, big_one = (sum(took for (owner,), way, took in found if owner == name and way != "waiting") for name in names)
    assert big_one > 100 * small_one > 0
    assert {owner for (owner,), _, _ in found} == set(names)
    assert 0 < clock.host_seconds < 0.01  # which waited in `stop`


@pytest.mark.gpu
def test_usage_counts_bytes_and_waits():
    def step() -> None:
        x = torch.ones(1 << 20, device="cuda")
        x.sum().item()
        x.max().item()

    found = usage(step)
    assert found.peak_bytes >= 4 << 20
    assert found.host_waits == 2
