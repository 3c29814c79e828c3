"""What a step makes of a GPU: whose each kernel is, idle time, memory, and how often the host waits for it."""

import time
import warnings
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler import profile

Owner = tuple[tuple[str, ...], str]  # components, and forward, backward or waiting


@dataclass(frozen=True)
class Usage:
    """Of one step: the most bytes at any time; times that the host waited for the device. All 0 on a CPU."""

    peak_bytes: float = 0.0
    host_waits: int = 0


def usage(step: Callable[[], object]) -> Usage:
    """Of a step that waits for the device once before and once after."""
    torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Usage(float(peak), sum("synchroniz" in str(each.message) for each in caught))


class DeviceClock:
    """Times of what a GPU ran, by the mark that its launch came after.

    The device keeps the time of each kernel itself (CUPTI, through torch's profiler, whose clock is the system's): a mark costs
    the host the reading of its clock and the device nothing, where an event before each kernel lengthened a step by 15%
    (docs/log.md).
    """

    def __init__(self, device: torch.device):
        self.device = device

    def start(self) -> None:
        """Wait for what still runs, and watch what is launched from here on."""
        self._marks: list[tuple[int, Owner]] = []
        self.host_seconds = 0.0
        torch.cuda.synchronize(self.device)
        self._profiler = profile(use_device="cuda", use_kineto=True, use_cpu=False)
        self._profiler.__enter__()

    def mark(self, components: tuple[str, ...], direction: str) -> None:
        """What is launched from here on is theirs."""
        self._marks.append((time.time_ns(), (components, direction)))

    def stop(self) -> list[tuple[tuple[str, ...], str, float]]:
        """Components, direction and seconds of each kernel, and of the time in which the device waited for it. Leaves in
        host_seconds how long the host was busy."""
        torch.cuda.synchronize(self.device)
        self._profiler.__exit__(None, None, None)
        results = self._profiler.kineto_results
        assert results is not None
        calls, kernels = {}, []
        for event in results.events():
            start = event.start_ns()
            if event.device_type() == DeviceType.CUDA:
                if not event.is_user_annotation():
                    kernels.append(Kernel(start, start + event.duration_ns(), event.correlation_id()))
            elif event.name().startswith("cu"):  # CUDA's own calls
                calls[event.correlation_id()] = Call(start, start + event.duration_ns())
        self.host_seconds = busy_seconds(calls, kernels)
        return attributed(self._marks, {launch: call.start for launch, call in calls.items()}, kernels)


class Kernel(NamedTuple):
    """Anything that the device ran, copies too. Nanoseconds, and the number of the call that launched it."""

    start: int
    end: int
    launch: int


class Call(NamedTuple):
    """Of CUDA, by the host. Nanoseconds."""

    start: int
    end: int


def busy_seconds(calls: dict[int, Call], kernels: Iterable[Kernel]) -> float:
    """How long the host works at least, from its first call to its last: all of the time between calls, and of each call no
    more than a launch takes. What is longer waits: for the device, or for room in its queue, which one launch in twenty
    always finds."""
    launches = sorted(call.end - call.start for call in (calls.get(kernel.launch) for kernel in kernels) if call)
    if not launches:
        return 0.0
    usual, in_order = launches[len(launches) // 20], sorted(calls.values())
    between = sum(max(0, after.start - before.end) for before, after in pairwise(in_order))
    return (between + sum(min(call.end - call.start, usual) for call in in_order)) / 1e9


def attributed(
    marks: Sequence[tuple[int, Owner]], launches: dict[int, int], kernels: Iterable[Kernel]
) -> list[tuple[tuple[str, ...], str, float]]:
    """The time from the first kernel's start to the last one's end: each kernel's, without what an earlier one covers, and
    the gap before it. A kernel belongs to the last mark before its launch."""
    starts = [start for start, _ in marks]
    found, until = [], None
    for kernel in sorted(kernels):
        components, direction = marks[max(0, bisect(starts, launches.get(kernel.launch, 0)) - 1)][1]
        if until is not None and kernel.start > until:
            found.append((components, "waiting", (kernel.start - until) / 1e9))
        until = max(until or 0, kernel.start)
        if kernel.end > until:
            found.append((components, direction, (kernel.end - until) / 1e9))
            until = kernel.end
    return found
