"""The device's own matrix-product rate, measured: what a model's arithmetic is held against."""

import time

import torch


def matmul_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a large square product of random matrices, the best of several; takes about `seconds`."""
    side = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)  # the run's own generator must not move
    a, b = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    torch.mm(a, b)
    best = float("inf")
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
