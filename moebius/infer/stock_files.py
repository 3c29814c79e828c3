"""The files of a stock checkpoint: safetensors in parts of 5 GB with an index, and JSON."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moebius.errors import CheckpointError, StorageError
from moebius.train.checkpoint import remove

CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_FILE = 5 * 10**9
"""Bytes of tensors above which they are split over several files, as transformers does."""
METADATA = {"format": "pt"}
"""Older versions of transformers refuse a file without this."""


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `place`, which is renamed to it in the end.

    If an error ends the block, nothing remains, nor do folders above it that did not exist.
    Raises StorageError if the folder exists or cannot be written.
    """
    aside = place.with_name(f".{place.name}.partial") if place.name else place
    new_parents: list[Path] = []
    try:
        if os.path.lexists(place):
            raise StorageError(f"{place}: exists; choose a folder that does not exist yet")
        remove(aside)
        new_parents = [parent for parent in aside.parents if not parent.exists()]
        aside.mkdir(parents=True)
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{place}: {reason}; choose another folder") from None
    try:
        yield aside
        aside.rename(place)
        new_parents = []
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{place}: could not be written: {reason}") from None
    finally:
        remove(aside)
        for parent in new_parents:
            with suppress(OSError):  # something else may be in it by now
                parent.rmdir()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object as JSON. Raises OSError."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def write_tensors(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], largest_file: int = LARGEST_FILE
) -> int:
    """Write tensors into one file, or into several with an index, and return their size in bytes.

    Tensors are taken one after another, so that only those of one file are in memory. Raises
    OSError and SafetensorError.
    """
    parts: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = size = 0

    def write() -> None:
        parts.append(list(waiting))
        path = folder / _part_name(len(parts), 0)
        path.touch()
        mode = path.stat().st_mode
        save_file(waiting, path, METADATA)
        path.chmod(mode)  # the library keeps others from reading the file
        waiting.clear()

    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > largest_file:
            write()
            size = 0
        # Tensors that share memory, such as copies of an expert, would be refused.
        waiting[name] = tensor.clone() if tensor.is_contiguous() else tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    if len(parts) == 1:
        (folder / _part_name(1, 0)).rename(folder / SINGLE)
        return total
    place_of: dict[str, str] = {}
    for number, names in enumerate(parts, start=1):
        name = _part_name(number, len(parts))
        (folder / _part_name(number, 0)).rename(folder / name)
        place_of |= dict.fromkeys(names, name)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place_of})
    return total


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises CheckpointError if there is none."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged, not JSON: {reason}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: damaged, not a JSON object")
    return values


class StockTensors:
    """The tensors of a stock checkpoint by name. Each is read when it is asked for."""

    def __init__(self, folder: Path):
        """Find all tensors. Raises CheckpointError for files that are missing or damaged."""
        self._file_of: dict[str, Path] = {}
        for name, listed in _files(folder).items():
            path = folder / name
            try:
                with safe_open(path, "pt") as file:
                    names = set(file.keys())
            except (OSError, SafetensorError) as error:
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                raise CheckpointError(f"{path}: cannot be read: {reason}") from None
            if absent := sorted(listed - names):
                raise CheckpointError(f"{path}: damaged, {absent[0]} is not in it")
            self._file_of |= dict.fromkeys(names, path)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._file_of))

    def read(self, name: str) -> Tensor:
        """Return a tensor as float32. Raises CheckpointError if it is not there."""
        if name not in self._file_of:
            raise CheckpointError(f"tensor {name} is missing")
        with safe_open(self._file_of[name], "pt") as file:
            return file.get_tensor(name).float()


def _files(folder: Path) -> dict[str, set[str]]:
    """Return the names of the files of tensors, with the tensors that the index lists in each."""
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise CheckpointError(
                f"{folder}: no checkpoint here; neither {SINGLE} nor {INDEX} is in it"
            )
        return {SINGLE: set()}
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{folder / INDEX}: damaged, weight_map is missing")
    files: dict[str, set[str]] = {}
    for name, file in index.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{folder / INDEX}: damaged, {file!r} is not the name of a file")
        files.setdefault(file, set()).add(name)
    return files


def _part_name(number: int, count: int) -> str:
    """Return the name of a file of tensors; the count is 0 as long as it is not known."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"
