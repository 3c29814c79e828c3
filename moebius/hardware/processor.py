"""The processor that this process runs on: its cores, and who else uses them, without torch."""

import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

from moebius.cost.units import counted

QUOTA = Path("/sys/fs/cgroup/cpu.max")
STATISTICS = Path("/proc/stat")
FULL = 0.9
"""Share of the cores' time above which a process has to wait for a core now and then."""
NOTICEABLE = 0.05
"""Share of the cores' time that others may use without being noticed."""
SHORTEST = 0.25
"""Fewest seconds to watch for, because the system counts hundredths of a second."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def quota() -> float:
    """Return the CPU time per second that this process may use, at most `cores()`.

    A container may be given less than all of its cores.
    """
    try:
        allowed, period = QUOTA.read_text().split()
        return min(float(cores()), float(allowed) / float(period))
    except (OSError, ValueError):  # there is no such file, or the quota is "max"
        return float(cores())


class Usage(NamedTuple):
    """How many cores were in use on average, by this process and by others."""

    own: float
    """Cores that this process and its children used."""
    others: float
    """Cores that all other processes used, or that the host of a virtual machine withheld."""
    cores: int
    """Number of cores that this process may use."""

    @property
    def is_crowded(self) -> bool:
        """Whether this process had to share cores, so that its times are too long."""
        is_full = self.own + self.others > FULL * self.cores
        return is_full and self.others > NOTICEABLE * self.cores

    @property
    def crowding(self) -> str:
        """Who else uses the cores, in words, or "" if this process does not have to share them."""
        in_words = counted(self.cores, "core")
        if not self.is_crowded:
            return ""
        return f"others are using the processor ({self.others:.1f} of {in_words})"

    def beside(self, threads: int) -> "Usage":
        """Return the usage if this process keeps that many threads busy, and others go on."""
        return self._replace(own=float(threads))


class Watch:
    """Watches who uses the processor, from its creation on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def usage(self) -> Usage:
        """Return the usage since the creation, which has to be at least a moment ago."""
        time.sleep(max(0.0, self._start + SHORTEST - time.perf_counter()))
        seconds = time.perf_counter() - self._start
        own = (_own_seconds() - self._own) / seconds
        busy = _busy_seconds()
        if busy is None or self._busy is None:  # not Linux
            others = os.getloadavg()[0] - own
        else:
            others = (busy - self._busy) / seconds - own
        return Usage(own, max(0.0, others), cores())


def _own_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended, in seconds."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _busy_seconds() -> float | None:
    """Return the seconds for which this process's cores were busy since the machine started.

    Return None if the system does not say so. Time that the host of a virtual machine withholds
    (steal) counts.
    """
    try:
        lines = STATISTICS.read_text().splitlines()
        own_cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    except (OSError, AttributeError):
        return None
    fields = [line.split() for line in lines]
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [
        [int(number) for number in numbers[:3] + numbers[5:8]]
        for name, *numbers in fields
        if name in own_cores
    ]
    return sum(map(sum, ticks)) / os.sysconf("SC_CLK_TCK") if ticks else None


SINCE_THE_START = Watch()
"""Watches from the import of this module on, which is when a command begins."""
