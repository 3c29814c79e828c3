"""Contenders in turns, A B A B, so that a machine that slows down slows all of them. One that fails (out of memory, a kernel
that is not there) is a result that says so."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

OUT_OF_MEMORY = "out of memory"


class Timed(NamedTuple):
    """Seconds, turn by turn; bytes at most beyond what was there before, 0 on a CPU."""

    seconds: list[float]
    peak_bytes: float = 0.0
    error: str = ""

    @property
    def ms(self) -> float:
        return statistics.median(self.seconds) * 1e3

    def over(self, other: "Timed") -> str:
        """How many times the other's, turn by turn: median and range."""
        if not (self.seconds and other.seconds):
            return ""
        ratios = sorted(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def functions_in_turns(
    contenders: Mapping[str, Callable[[], object]], device: torch.device, rounds: int = 7, seconds: float = 0.05
) -> dict[str, Timed]:
    """Each called as often as fits in `seconds` a turn, after it has been compiled and warmed up."""
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
    """For each of `count` times."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        work()
    _wait(device)
    return (time.perf_counter() - start) / count


def peak_of(work: Callable[[], object], device: torch.device, beyond: bool = True) -> float:
    """Bytes at most, beyond what was there before or in all; 0 on a CPU."""
    if device.type != "cuda":
        work()
        return 0.0
    before = torch.cuda.memory_allocated(device) if beyond else 0
    torch.cuda.reset_peak_memory_stats(device)
    work()
    _wait(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def reason(error: Exception) -> str:
    """In a few words, for a row of a table."""
    text = " ".join(str(error).split())
    is_memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in text
    return OUT_OF_MEMORY if is_memory else f"{type(error).__name__}: {text[:120]}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
