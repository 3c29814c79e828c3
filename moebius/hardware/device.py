"""The device that a run uses: choose it, describe it and wait for it."""

import os
import platform

import torch

from moebius.config import Config
from moebius.cost.counts import parameters
from moebius.cost.memory import Share, memory
from moebius.cost.sizes import FLOAT32
from moebius.cost.units import byte_size, counted, short
from moebius.errors import ConfigError
from moebius.hardware.processor import SINCE_THE_START


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device of that name; `auto` is the first GPU, or the CPU if there is none.

    local_rank: number of this process among those of its machine, if there are several processes.
    Each of them takes the GPU of its number.

    Raises ConfigError for a GPU that this machine does not have.
    """
    available = torch.cuda.device_count()
    if local_rank is not None and name != "cpu" and (available or name != "auto"):
        return _own_gpu(name, local_rank, available)
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= available:
        raise ConfigError(
            f"train.device={name!r}: this machine has {counted(available, 'CUDA device')}; "
            "use --train.device cpu or auto"
        )
    return device


def _own_gpu(name: str, local_rank: int, available: int) -> torch.device:
    """Return the GPU of one of several processes, which becomes the current one."""
    if name not in ("auto", "cuda"):
        raise ConfigError(
            f"train.device={name!r}: with several processes, each takes a GPU of its own; use "
            "--train.device cuda"
        )
    if local_rank >= available:
        raise ConfigError(
            f"LOCAL_RANK={local_rank}: this machine has {counted(available, 'CUDA device')}; "
            f"start with --nproc-per-node {max(1, available)}, or use --train.device cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
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


def check_fits(config: Config, device: torch.device, share: Share | None = None) -> None:
    """Raise ConfigError for a model that cannot be trained on the device, before it is created.

    share: what the device holds of the run; by default all of it.

    The weights, their gradients and the optimizer's state must be in its memory at the same time.
    A step needs more than that, which `moebius plan` estimates.
    """
    expected = memory(config, item=FLOAT32, compiled=False, share=share)
    needed = expected.weights + expected.gradients + expected.optimizer
    if needed > total_memory(device):
        count = sum(parameters(config.model).values())
        raise ConfigError(
            f"model: its {short(count)} parameters need {byte_size(needed)} of memory for "
            f"training, and {describe(device)} has {byte_size(total_memory(device))}; make the "
            "model smaller"
        )
