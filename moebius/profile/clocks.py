"""The host's clock and a GPU's clock, which both tell how long the work between two marks took.

A mark says which components the work from then on belongs to, and in which direction it goes.
"""

import time
from bisect import bisect
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler import profile


class Mark(NamedTuple):
    """A moment from which on the time belongs to certain components."""

    when: float
    """Seconds on the host's clock for a CPU, or nanoseconds on the system's clock for a GPU."""
    components: tuple[str, ...]
    """Components that share the time: more than one for a kernel that fuses several."""
    direction: str
    """`forward` or `backward`."""


class Stretch(NamedTuple):
    """An uninterrupted part of a step's time, and the components that it belongs to."""

    components: tuple[str, ...]
    """Components that share the time."""
    direction: str
    """`forward`, `backward`, or `waiting` if a GPU had nothing to do."""
    seconds: float


class Kernel(NamedTuple):
    """Anything that a GPU ran, copies included."""

    start: int
    """Nanoseconds on the system's clock."""
    end: int
    """Nanoseconds on the system's clock."""
    launch: int
    """Number of the CUDA call that launched it."""


class Call(NamedTuple):
    """A call of the CUDA library by the host."""

    start: int
    """Nanoseconds on the system's clock."""
    end: int
    """Nanoseconds on the system's clock."""


class HostClock:
    """A clock for a device that has finished its work when a call returns: a CPU."""

    host_seconds = 0.0
    """Seconds in which the host was busy launching work for a GPU: none, without a GPU."""

    def start(self) -> None:
        """Forget all earlier marks."""
        self._marks: list[Mark] = []

    def mark(self, components: tuple[str, ...], direction: str) -> None:
        """Attribute the time from now on to these components."""
        self._marks.append(Mark(time.perf_counter(), components, direction))

    def stop(self) -> list[Stretch]:
        """Return the time from each mark to the next one, and from the last mark until now."""
        ends = [mark.when for mark in self._marks[1:]] + [time.perf_counter()]
        return [
            Stretch(mark.components, mark.direction, end - mark.when)
            for mark, end in zip(self._marks, ends, strict=True)
        ]


class DeviceClock:
    """A clock for what a GPU runs. A kernel belongs to the last mark before its launch.

    The GPU itself records when each kernel ran, and torch's profiler (CUPTI) reports it on the
    system's clock. A mark therefore costs the host one reading of its clock, and the GPU nothing.
    A CUDA event before each kernel would make a step 15% longer.
    """

    host_seconds = 0.0
    """Lower bound of the seconds in which the host was busy between `start` and `stop`."""

    def __init__(self, device: torch.device):
        self.device = device

    def start(self) -> None:
        """Wait until the GPU is idle, and record everything that is launched from now on."""
        self._marks: list[Mark] = []
        torch.cuda.synchronize(self.device)
        self._profiler = profile(use_device="cuda", use_kineto=True, use_cpu=False)
        self._profiler.__enter__()

    def mark(self, components: tuple[str, ...], direction: str) -> None:
        """Attribute what is launched from now on to these components."""
        self._marks.append(Mark(time.time_ns(), components, direction))

    def stop(self) -> list[Stretch]:
        """Wait for the GPU, and return the time of each kernel and of the gap before it.

        This also sets `host_seconds`.
        """
        torch.cuda.synchronize(self.device)
        self._profiler.__exit__(None, None, None)
        results = self._profiler.kineto_results
        assert results is not None
        calls: dict[int, Call] = {}
        kernels: list[Kernel] = []
        for event in results.events():
            start = event.start_ns()
            end = start + event.duration_ns()
            if event.device_type() == DeviceType.CUDA:
                if not event.is_user_annotation():
                    kernels.append(Kernel(start, end, event.correlation_id()))
            elif event.name().startswith("cu"):  # the CUDA library's own calls
                calls[event.correlation_id()] = Call(start, end)
        self.host_seconds = busy_seconds(calls, kernels)
        launches = {number: call.start for number, call in calls.items()}
        return attributed(self._marks, launches, kernels)


def busy_seconds(calls: dict[int, Call], kernels: Iterable[Kernel]) -> float:
    """Return a lower bound of the seconds in which the host was busy launching kernels.

    This is the time between its first and its last CUDA call, but no call counts for longer than a
    launch takes: in a longer call, the host waits for the GPU, or for room in its queue. At least
    one launch in twenty finds room immediately, so the fastest twentieth shows how long a launch
    takes.

    calls: the calls by the numbers that `Kernel.launch` refers to. The result is 0 if no kernel
    refers to any of them.
    """
    launches = sorted(
        call.end - call.start for call in (calls.get(kernel.launch) for kernel in kernels) if call
    )
    if not launches:
        return 0.0
    usual = launches[len(launches) // 20]
    in_order = sorted(calls.values())
    between = sum(max(0, after.start - before.end) for before, after in pairwise(in_order))
    return (between + sum(min(call.end - call.start, usual) for call in in_order)) / 1e9


def attributed(
    marks: Sequence[Mark], launches: dict[int, int], kernels: Iterable[Kernel]
) -> list[Stretch]:
    """Return the time from the first kernel's start to the last one's end, in stretches.

    A kernel gets the time that no earlier kernel covers. The gap before it belongs to the same
    components as the kernel, with the direction `waiting`.

    launches: the time of each CUDA call by its number, in nanoseconds.
    """
    moments = [mark.when for mark in marks]
    stretches: list[Stretch] = []
    until: int | None = None
    for kernel in sorted(kernels):
        last_mark = max(0, bisect(moments, launches.get(kernel.launch, 0)) - 1)
        _, components, direction = marks[last_mark]
        if until is not None and kernel.start > until:
            stretches.append(Stretch(components, "waiting", (kernel.start - until) / 1e9))
        until = max(until or 0, kernel.start)
        if kernel.end > until:
            stretches.append(Stretch(components, direction, (kernel.end - until) / 1e9))
            until = kernel.end
    return stretches
