"""The device that a run uses: choose it, describe it, wait for it, and query its memory."""

import platform
import resource
import sys

import torch

from moebius.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the first GPU, or the CPU if there is none.

    Raises ConfigError for a GPU that this machine does not have.
    """
    available = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= available:
        raise ConfigError(
            f"train.device={name!r}: this machine has {available} CUDA devices; "
            "use --train.device cpu or auto"
        )
    return device


def describe(device: torch.device) -> str:
    """Return the device in words: the GPU's name, or the CPU's architecture and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def wait(device: torch.device) -> None:
    """Return once the device has finished all work that was queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def total_memory(device: torch.device) -> float:
    """Return the memory of a GPU in bytes."""
    return float(torch.cuda.get_device_properties(device).total_memory)


def peak_memory(device: torch.device) -> float:
    """Return the largest number of bytes used so far, on the GPU or, on a CPU, by the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
