"""Tests of the processor's cores and of who uses them."""

import os
import subprocess
import sys
import time

import pytest

from moebius.hardware import processor
from moebius.hardware.processor import Usage, Watch, cores, quota


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000", 1.5), ("max 100000", 4.0), ("900000 100000", 4.0), ("", 4.0), (None, 4.0)],
)
def test_the_time_that_a_container_allows(monkeypatch, tmp_path, text, expected):
    file = tmp_path / "cpu.max"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(processor, "QUOTA", file)
    monkeypatch.setattr(processor, "cores", lambda: 4)
    assert quota() == expected


@pytest.mark.parametrize(
    ("own", "others", "is_crowded"),
    [
        (2.0, 0.02, False),  # nothing but the system's own work
        (1.4, 0.6, True),
        (1.0, 0.5, False),  # there is room for both
        (0.0, 2.0, True),
    ],
)
def test_a_process_is_crowded_if_the_cores_are_full_and_others_have_a_part(
    own, others, is_crowded
):
    assert Usage(own, others, cores=2).is_crowded == is_crowded
    assert bool(Usage(own, others, cores=2).crowding) == is_crowded


def test_usage_in_words():
    assert Usage(0.5, 0.55, 1).crowding == "others are using the processor (0.6 of 1 core)"
    assert Usage(1.0, 1.26, 2).crowding == "others are using the processor (1.3 of 2 cores)"


class FakeMachine:
    """A machine with two cores and counters that a test sets, in seconds."""

    def __init__(self, monkeypatch, tmp_path):
        self.file = tmp_path / "stat"
        self.now = self.own = 0.0
        monkeypatch.setattr(processor, "STATISTICS", self.file)
        monkeypatch.setattr(processor, "_own_seconds", lambda: self.own)
        monkeypatch.setattr(processor, "time", self)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2})

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def counts(self, *busy: float) -> None:
        """Write counters with this many seconds for each core, spread over their kinds."""
        ticks = os.sysconf("SC_CLK_TCK")
        parts = [
            # user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice
            [seconds * ticks / 4, 0, seconds * ticks / 4, 999, 77, 0, 0, seconds * ticks / 2, 5, 5]
            for seconds in busy
        ]
        lines = [f"cpu{n} " + " ".join(f"{x:.0f}" for x in part) for n, part in enumerate(parts)]
        self.file.write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5 0"]))


def test_what_others_use_is_the_rest_of_what_is_busy(monkeypatch, tmp_path):
    """Core 1 belongs to somebody else, and only time that is neither idle nor waiting counts."""
    fake = FakeMachine(monkeypatch, tmp_path)
    fake.counts(100, 200, 300)
    watch = Watch()
    fake.now, fake.own = 10.0, 12.0
    fake.counts(110, 210, 308)
    usage = watch.usage()
    assert (usage.own, usage.others, usage.cores) == (1.2, pytest.approx(0.6), 2)


def test_a_short_watch_waits_until_the_counters_can_tell(monkeypatch, tmp_path):
    fake = FakeMachine(monkeypatch, tmp_path)
    fake.counts(0, 0, 0)
    watch = Watch()
    fake.now = 0.01
    assert watch.usage().others == 0 and fake.now == processor.SHORTEST


def test_a_system_without_counters_is_judged_by_its_load(monkeypatch, tmp_path):
    fake = FakeMachine(monkeypatch, tmp_path)
    watch = Watch()
    monkeypatch.setattr(os, "getloadavg", lambda: (1.75, 0.0, 0.0))
    fake.now, fake.own = 4.0, 4.0
    assert watch.usage() == Usage(own=1.0, others=0.75, cores=2)
    fake.own = 12.0
    assert watch.usage().others == 0.0


def test_another_process_is_seen():
    """A real process that computes uses more of the cores than a sleeping one."""
    watch = Watch()
    computing = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1.0)
        usage = watch.usage()
    finally:
        computing.kill()
        computing.wait()
    assert usage.cores == cores() and usage.others > 0.2
    assert usage.beside(cores()).is_crowded
