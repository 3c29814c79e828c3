"""Record the machine and the versions that a run is trained with, in environment.jsonl."""

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from moebius import __version__
from moebius.errors import StorageError
from moebius.hardware.device import describe
from moebius.observe.line_file import append_after
from moebius.train.run_directory import RunDirectory

ENVIRONMENT = "environment.jsonl"
LIBRARIES = ("torch", "triton", "numpy", "tokenizers", "safetensors")


def record_environment(
    run: RunDirectory, step: int, device: torch.device, num_processes: int
) -> None:
    """Append a line about the process that trains the run after `step`. Raises StorageError.

    Lines about later steps, from which the run went back, are removed. Nothing of the process's
    environment variables is recorded, because they may hold secrets.
    """
    path = run.root / ENVIRONMENT
    line = {"step": step} | environment(device, num_processes)
    try:
        append_after(path, step, line)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from None


def environment(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Return what a reader of the run's figures has to know of the machine."""
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "device": describe(device),
        "processes": num_processes,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "moebius": __version__,
        **{name: found for name in LIBRARIES if (found := _version(name))},
        **({"cuda": torch.version.cuda} if torch.version.cuda else {}),
    }


def _version(library: str) -> str:
    """Return the version of an installed library, or "" without it."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
