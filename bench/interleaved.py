"""Time contenders in turns, A B A B, so that a machine that slows down slows down all of them.

A contender that fails (out of memory, a kernel that is missing) is a result that says so.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from moebius.hardware.device import wait

OUT_OF_MEMORY = "out of memory"


class Timed(NamedTuple):
    """The times of one contender."""

    seconds: list[float]
    """Seconds of one call, in each turn."""
    peak_bytes: float = 0.0
    """Largest number of bytes that were allocated on the GPU. 0 on a CPU."""
    error: str = ""
    """Why the contender failed. Empty if it did not."""

    @property
    def ms(self) -> float:
        """Milliseconds of one call: the median of the turns."""
        return statistics.median(self.seconds) * 1e3

    def over(self, reference: "Timed") -> str:
        """Return the time divided by the reference's, turn by turn: the median and the range.

        Empty if one of them failed.
        """
        if not (self.seconds and reference.seconds):
            return ""
        pairs = zip(self.seconds, reference.seconds, strict=True)
        ratios = sorted(own / other for own, other in pairs)
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def functions_in_turns(
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int = 7,
    seconds: float = 0.05,
) -> dict[str, Timed]:
    """Time functions that take no argument, after each has been called once to compile it.

    In each of the rounds every function is called as often as fits into `seconds`. The peak memory
    of a function does not count what was allocated before.
    """
    counts, results = {}, {}
    for name, contender in contenders.items():
        try:
            contender()
            peak = peak_of(contender, device)
            counts[name] = max(1, min(100, int(seconds / seconds_of(contender, 1, device))))
            results[name] = Timed([], peak)
        except Exception as error:
            results[name] = Timed([], error=reason(error))
    for _ in range(rounds):
        for name, count in counts.items():
            results[name].seconds.append(seconds_of(contenders[name], count, device))
    return results


def seconds_of(work: Callable[[], object], count: int, device: torch.device) -> float:
    """Call `work`, and return the seconds of one call, on average over all `count`."""
    wait(device)
    start = time.perf_counter()
    for _ in range(count):
        work()
    wait(device)
    return (time.perf_counter() - start) / count


def peak_of(work: Callable[[], object], device: torch.device, beyond: bool = True) -> float:
    """Call `work`, and return the most bytes that were allocated on the GPU; 0 on a CPU.

    beyond: whether what was allocated before does not count.
    """
    if device.type != "cuda":
        work()
        return 0.0
    before = torch.cuda.memory_allocated(device) if beyond else 0
    torch.cuda.reset_peak_memory_stats(device)
    work()
    wait(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def reason(error: Exception) -> str:
    """Return an error in a few words, for a row of a table."""
    text = " ".join(str(error).split())
    is_memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in text
    return OUT_OF_MEMORY if is_memory else f"{type(error).__name__}: {text[:120]}"
