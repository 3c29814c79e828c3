"""Which tile a product is cut into: the fastest of a few, measured once for a device and a shape, and kept on disk."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from moebius.kernels.hopper import parts
from moebius.kernels.launch import power_of_2
from moebius.kernels.tiles import Tile

Result = TypeVar("Result")

BY_HAND = Tile(parts.BM, parts.BN, parts.BK, 16, parts.STAGES, epilogue="by hand")

# The first of each fits every shape, and is what runs where nothing is measured.
CANDIDATES = {
    "up": [Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4)],
    "swiglu": [BY_HAND, Tile(128, 128, 64, 8, 3)],
    "down": [Tile(256, 128, 64, 8, 3), Tile(256, 128, 64, 8, 4), Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 4, 3, 2)],
    "down_backward": [
        Tile(64, 128, 64, 4, 3, 2),
        *(Tile(m, n, 64, 8, 3, epilogue="split") for m, n in ((256, 128), (128, 256))),
    ],
    "swiglu_backward": [BY_HAND, Tile(256, 128, 64, 8, 3, epilogue="split"), Tile(64, 128, 64, 4, 3, 2)],
    "up_backward": [Tile(256, 128, 64, 8, 3), Tile(256, 128, 64, 8, 4), Tile(128, 128, 64, 4, 3, 2)],
    "weights": [Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4)],
}
SMALL = Tile(64, 64, 32, 4, 2)  # float32 in full precision has no tensor cores to feed
RUNS = 5
_chosen: dict[tuple, Tile] = {}


def with_best_tile(kind: str, given: Tensor, shape: tuple[int, ...], run: Callable[[Tile], Result]) -> Result:
    """run(tile) with the tile that is fastest for this kind of product, type, shape and about as many rows as `given` has.

    Measuring waits for the device, once. MOEBIUS_TUNE=off measures nothing and reads no file.
    """
    if given.dtype != torch.bfloat16 or given.device.type != "cuda":
        return run(SMALL)
    key = (kind, given.device, power_of_2(len(given)), *shape)
    if key not in _chosen:
        _chosen[key] = _choose(CANDIDATES[kind], key, run)
    return run(_chosen[key])


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moebius" / "tiles.json"


def _choose(candidates: list[Tile], key: tuple, run: Callable[[Tile], object]) -> Tile:
    if len(candidates) == 1 or os.environ.get("MOEBIUS_TUNE") == "off" or torch.cuda.is_current_stream_capturing():
        return candidates[0]
    kind, device, *shape = key
    name = " ".join(map(str, (kind, *shape, torch.cuda.get_device_name(device), "triton", triton.__version__)))
    known = _read()
    tile = next((tile for tile in candidates if known.get(name) == list(tile)), None)  # a tile of another version is none
    if tile is None:
        tile = min(candidates, key=lambda tile: _time(run, tile))
        _write({**_read(), name: list(tile)})
    return tile


def _time(run: Callable[[Tile], object], tile: Tile) -> float:
    """Milliseconds, the fastest of a few; infinite for a tile that does not fit."""
    try:
        run(tile)
    except OutOfResources:
        return float("inf")
    times = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(tile)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times)


def _read() -> dict[str, list]:
    try:
        known = json.loads(cache_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(known: dict[str, list]) -> None:
    """Whole or not at all; a place that cannot be written to costs the next run a second."""
    path = cache_file()
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(known, indent=1, sort_keys=True), "utf-8")
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
