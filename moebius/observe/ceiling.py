"""The device's own rates of products and copies, measured: what a model is held against."""

import time
from collections.abc import Callable

import torch


def matmul_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a large square product of random matrices, the best of several; takes about `seconds`."""
    sides = (8192,) if device.type == "cuda" else (256, 1024)  # a CPU that emulates bfloat16 is faster at small ones
    return max(_matmul_rate(side, device, dtype, seconds / len(sides)) for side in sides)


def _matmul_rate(side: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    generator = torch.Generator(device).manual_seed(0)  # the run's own generator must not move
    a, b = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    return 2 * side**3 / _fastest(lambda: torch.mm(a, b), device, seconds)


def copy_ceiling(device: torch.device, seconds: float = 0.3) -> float:
    """Bytes/s of a large copy, those read and those written together; takes about `seconds`."""
    size = 1 << (30 if device.type == "cuda" else 27)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device, seconds)


def _fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of as many as fit, after a first one."""
    work()
    best = float("inf")
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
