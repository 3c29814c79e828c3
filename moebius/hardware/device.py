"""The device that a run uses: choose it, describe it and wait for it."""

import os
import platform

import torch

from moebius.config import Config
from moebius.cost.counts import parameters
from moebius.cost.memory import memory
from moebius.cost.sizes import FLOAT32
from moebius.cost.units import byte_size, counted, short
from moebius.errors import ConfigError
from moebius.hardware.processor import SINCE_THE_START


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
            f"train.device={name!r}: this machine has {counted(available, 'CUDA device')}; "
            "use --train.device cpu or auto"
        )
    return device


def describe(device: torch.device) -> str:
    """Return the device in words: the GPU's name, or the CPU's architecture and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {counted(torch.get_num_threads(), 'thread')}"


def crowding(device: torch.device) -> str:
    """Return in words who uses the processor that a run on the device needs.

    The result is empty if the run has its cores to itself. On a GPU, it needs one of them.
    """
    busy_threads = 1 if device.type == "cuda" else torch.get_num_threads()
    return SINCE_THE_START.usage().beside(busy_threads).crowding


def wait(device: torch.device) -> None:
    """Return once the device has finished all work that was queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def total_memory(device: torch.device) -> float:
    """Return the memory of a GPU or, for a CPU, of the machine, in bytes."""
    if device.type != "cuda":
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return float(torch.cuda.get_device_properties(device).total_memory)


def check_fits(config: Config, device: torch.device) -> None:
    """Raise ConfigError for a model that cannot be trained on the device, before it is created.

    The weights, their gradients and the optimizer's state must be in its memory at the same time.
    A step needs more than that, which `moebius plan` estimates.
    """
    expected = memory(config, item=FLOAT32, compiled=False)
    needed = expected.weights + expected.gradients + expected.optimizer
    if needed > total_memory(device):
        count = sum(parameters(config.model).values())
        raise ConfigError(
            f"model: its {short(count)} parameters need {byte_size(needed)} of memory for "
            f"training, and {describe(device)} has {byte_size(total_memory(device))}; make the "
            "model smaller"
        )
