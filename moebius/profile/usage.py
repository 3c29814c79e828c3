"""Costs of a training step on a GPU other than time: its memory, and how often the host waits."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from moebius.hardware.memory import PeakMemory


@dataclass(frozen=True)
class GpuUsage:
    """Memory and host waits of one training step on a GPU. All figures are 0 on a CPU."""

    peak_bytes: float = 0.0
    """Largest number of bytes that were allocated at the same time."""
    host_waits: int = 0
    """How often the host waited for the GPU."""


def usage(step: Callable[[], object], device: torch.device) -> GpuUsage:
    """Return the usage of one step. `step` runs it, and waits for the GPU before and after."""
    torch.cuda.reset_peak_memory_stats(device)
    step()
    peak = PeakMemory(device).bytes()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return GpuUsage(peak, sum("synchroniz" in str(warning.message) for warning in caught))
