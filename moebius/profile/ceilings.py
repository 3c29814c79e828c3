"""What this device can do at most, measured once and kept."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from moebius.observe.ceiling import copy_ceiling, matmul_ceiling

KEPT_IN = "~/.cache/moebius/ceilings.json"


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s of a large matrix product, bytes/s of a large copy."""

    flops: float
    bytes: float


def ceilings(device: torch.device, dtype: torch.dtype, file: str = KEPT_IN) -> Ceilings:
    """From the file, or measured now, in about two seconds. A file that cannot be read or written is done without."""
    path = Path(os.path.expanduser(file))  # noqa: PTH111  (Path.expanduser raises RuntimeError for ~nobody)
    key = f"{describe(device)}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}"
    try:
        kept = json.loads(path.read_text())
        return Ceilings(**kept[key])
    except (OSError, ValueError, KeyError, TypeError):
        found = Ceilings(matmul_ceiling(device, dtype, seconds=1.0), copy_ceiling(device, seconds=1.0))
    _keep(path, key, found)
    return found


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def _keep(path: Path, key: str, found: Ceilings) -> None:
    try:
        kept = json.loads(path.read_text()) if path.exists() else {}
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps({**kept, key: asdict(found)}, indent=1))
        aside.replace(path)
    except (OSError, ValueError, TypeError):
        return
