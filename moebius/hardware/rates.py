"""Measure how fast a device multiplies matrices and copies memory, as a bound for its steps."""

import time
from collections.abc import Callable

import torch

from moebius.hardware.device import wait

GPU_SIDES = (8192,)
CPU_SIDES = (256, 1024)
"""Sides of the square matrices on a CPU. One that emulates bfloat16 is faster at small ones."""


def matmul_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Return the FLOP/s of the fastest product of large random square matrices.

    Measuring takes about `seconds`. torch's global random state is left alone.
    """
    sides = GPU_SIDES if device.type == "cuda" else CPU_SIDES
    return max(_matmul_rate(side, device, dtype, seconds / len(sides)) for side in sides)


def copy_ceiling(device: torch.device, seconds: float = 0.3) -> float:
    """Return the bytes/s of a large copy; bytes that are read and written both count.

    Measuring takes about `seconds`.
    """
    size = 1 << (30 if device.type == "cuda" else 27)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _shortest_seconds(lambda: target.copy_(source), device, seconds)


def _matmul_rate(side: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Return the FLOP/s of products of (side, side) matrices."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2)
    )
    return 2 * side**3 / _shortest_seconds(lambda: torch.mm(a, b), device, seconds)


def _shortest_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the duration of the fastest of the calls that fit into `seconds`.

    A warm-up call comes before them and is not timed.
    """
    work()
    shortest = float("inf")
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        shortest = min(shortest, time.perf_counter() - start)
    return shortest
