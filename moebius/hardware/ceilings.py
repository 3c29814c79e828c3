"""The highest rates that a device reaches, measured once and kept in a file."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from moebius.config.paths import expanded
from moebius.hardware.device import describe
from moebius.hardware.precision import dtype_name
from moebius.hardware.processor import Watch
from moebius.hardware.rates import copy_ceiling, matmul_ceiling

KEPT_IN = "~/.cache/moebius/ceilings.json"


@dataclass(frozen=True)
class Ceilings:
    """The rates that no step on the device can exceed."""

    flops: float
    """FLOP/s of a large matrix product."""
    bytes: float
    """Bytes/s of a large copy; bytes that are read and written both count."""


def ceilings(device: torch.device, dtype: torch.dtype, file: str = KEPT_IN) -> Ceilings:
    """Return the device's rates, with matrix products in `dtype`.

    They are read from the file or, if it does not have them, measured in about two seconds and
    stored there. A file that cannot be read or written is ignored. Rates of a CPU that others used
    at the time are too low, and not stored.
    """
    path = expanded(file)
    key = f"{describe(device)}, {dtype_name(dtype)}, torch {torch.__version__}"
    try:
        kept = json.loads(path.read_text())
        return Ceilings(**kept[key])
    except (OSError, ValueError, KeyError, TypeError):
        watch = Watch()
        measured = Ceilings(
            matmul_ceiling(device, dtype, seconds=1.0), copy_ceiling(device, seconds=1.0)
        )
    if device.type != "cpu" or not watch.usage().is_crowded:
        _store(path, key, measured)
    return measured


def _store(path: Path, key: str, measured: Ceilings) -> None:
    """Add the rates to the file. Other processes see either the old file or the new one."""
    try:
        kept = json.loads(path.read_text()) if path.exists() else {}
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps({**kept, key: asdict(measured)}, indent=1))
        aside.replace(path)
    except (OSError, ValueError, TypeError):
        return
