"""Choose the tile for each matrix product: the fastest of a few candidates.

The candidates are measured once for a device and a shape, and the choice is kept on disk.
"""

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
GATHERING = BY_HAND._replace(gathers=True)
LONG_STEPS = {"k": 2 * parts.BK, "stages": parts.STAGES // 2}

# For symmetric products, whose tiles are square. Larger, wider and smaller tiles are slower.
SYMMETRIC = [Tile(128, 128, 64, 4, 3, 2), Tile(128, 128, 64, 8, 3)]
SWIGLU = [BY_HAND, Tile(128, 128, 64, 8, 3)]
SWIGLU_BACKWARD = [
    BY_HAND,
    Tile(256, 128, 64, 8, 3, epilogue="split"),
    Tile(64, 128, 64, 4, 3, 2),
]
TO_ROWS = [
    BY_HAND,
    BY_HAND._replace(**LONG_STEPS),
    Tile(256, 128, 64, 8, 3),
    Tile(128, 256, 64, 8, 3),
]
WEIGHTS = [Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4)]
# The candidates for each kind of product. The first one of a list fits every shape, and is used if
# nothing is measured. Kinds "of slots" are for tokens that have several slots: only there can it
# pay to gather, because a separate gather writes out every token several times, and only there do
# the results of the last products stay in the order of the rows.
CANDIDATES = {
    "up": [Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4)],
    "swiglu": SWIGLU,
    "swiglu of slots": [GATHERING, *SWIGLU],
    "down": [
        Tile(256, 128, 64, 8, 3),
        Tile(256, 128, 64, 8, 4),
        Tile(128, 256, 64, 8, 3),
        Tile(128, 128, 64, 4, 3, 2),
    ],
    "down of slots": TO_ROWS,
    "down_backward": [
        Tile(64, 128, 64, 4, 3, 2),
        *(Tile(m, n, 64, 8, 3, epilogue="split") for m, n in ((256, 128), (128, 256))),
    ],
    "swiglu_backward": SWIGLU_BACKWARD,
    "swiglu_backward of slots": [GATHERING, *SWIGLU_BACKWARD],
    "up_backward": [
        Tile(256, 128, 64, 8, 3),
        Tile(256, 128, 64, 8, 4),
        Tile(128, 128, 64, 4, 3, 2),
    ],
    "up_backward of slots": TO_ROWS,
    "gram": SYMMETRIC,
    "polynomial": SYMMETRIC,
    "weights": WEIGHTS,
    "swiglu_weights of slots": [GATHERING._replace(**LONG_STEPS), *WEIGHTS],
}
# For float32, whose products use full precision and thus no tensor cores, so that a large tile has
# no advantage.
SMALL = Tile(64, 64, 32, 4, 2)
RUNS = 5  # timed runs of each candidate
_chosen: dict[tuple, Tile] = {}


def with_best_tile(
    kind: str, rows: Tensor, shape: tuple[int, ...], run: Callable[[Tile], Result]
) -> Result:
    """Return `run(tile)` for the fastest tile.

    The tile is chosen for the kind of product (a key of CANDIDATES), the device, the `shape` of
    the layer, and the number of `rows` rounded up to a power of 2. If the cache file does not
    hold the choice yet, the candidates are measured, which waits for the device. With
    MOEBIUS_TUNE=off in the environment nothing is measured, no file is read, and the first
    candidate is used.
    """
    if rows.dtype != torch.bfloat16 or rows.device.type != "cuda":
        return run(SMALL)
    key = (kind, rows.device, power_of_2(len(rows)), *shape)
    if key not in _chosen:
        _chosen[key] = _choose(CANDIDATES[kind], key, run)
    return run(_chosen[key])


def cache_file() -> Path:
    """Return the path of the JSON file that keeps the measured choices, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "moebius" / "tiles.json"


def _choose(candidates: list[Tile], key: tuple, run: Callable[[Tile], object]) -> Tile:
    """Return the tile that the cache file has for this key, or measure and save the fastest."""
    if (
        len(candidates) == 1
        or os.environ.get("MOEBIUS_TUNE") == "off"
        or torch.cuda.is_current_stream_capturing()
    ):
        return candidates[0]
    kind, device, *shape = key
    device_name = torch.cuda.get_device_name(device)
    name = " ".join(map(str, (kind, *shape, device_name, "triton", triton.__version__)))
    saved = _read().get(name)
    # A tile that another version of Moebius saved may not be a candidate any more.
    tile = next((tile for tile in candidates if saved == list(tile)), None)
    if tile is None:
        tile = min(candidates, key=lambda tile: _time(run, tile))
        _write({**_read(), name: list(tile)})
    return tile


def _time(run: Callable[[Tile], object], tile: Tile) -> float:
    """Return the milliseconds of the fastest of RUNS runs; infinity if the tile does not fit."""
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
    """Return the choices in the cache file; none if it is missing or damaged."""
    try:
        choices = json.loads(cache_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return choices if isinstance(choices, dict) else {}


def _write(choices: dict[str, list]) -> None:
    """Replace the cache file in one step, so that no other process ever sees a partial file.

    If the file cannot be written, the next run measures again, which takes about a second.
    """
    path = cache_file()
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(choices, indent=1, sort_keys=True), "utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
