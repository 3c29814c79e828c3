"""Checkpoints: safetensors and JSON in a folder, with a SHA-256 of every file. No pickle is written or read.

A checkpoint is written beside its place, synced, and renamed: a folder of its final name is complete. The manifest, which
names every file's size and hash, is its last file.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save_file
from torch import Tensor

from moebius.errors import CheckpointError, StorageError

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = ".safetensors"
CHUNK = 1 << 24
PART_BYTES = 1 << 30  # of a file at most, if it holds more than one tensor
FEW = 4  # files: those of a small model, written one after another
THREADS = 4  # one hashes 1 to 2 GB/s
PARTIAL, REPLACED, DELETED = ".partial", ".replaced", ".deleted"
ADVICE = "resume from another checkpoint, or copy this one again"
Groups = dict[str, dict[str, Tensor]]


def save(folder: Path, tensors: Groups, state: dict[str, Any]) -> Path:
    """Write each group as NAME.safetensors, a large one as NAME.2.safetensors and so on too, and state.json into `folder`,
    replacing a checkpoint that is there.

    Raises StorageError, leaving behind only what was there before.
    """
    return write(folder, snapshot(tensors), state)


def snapshot(tensors: Groups, into: Groups | None = None) -> Groups:
    """Copies on the CPU that later training steps do not change. Tied tensors come apart: each name has its own.

    into: an earlier snapshot, written over where it fits. A GPU's copies are in pinned memory, which is slow to get and
    several times faster to copy to.
    """
    into = into or {}
    copies = {
        group: {name: _copied(tensor.detach(), into.get(group, {}).get(name)) for name, tensor in named.items()}
        for group, named in tensors.items()
    }
    if any(tensor.is_cuda for named in tensors.values() for tensor in named.values()):
        torch.cuda.synchronize()
    return copies


def _copied(tensor: Tensor, buffer: Tensor | None) -> Tensor:
    if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return buffer.copy_(tensor, non_blocking=True)


def write(folder: Path, tensors: Groups, state: dict[str, Any]) -> Path:
    """Save what `snapshot` returned. Nothing here needs the device, or training to wait."""
    aside = folder.with_name(f".{folder.name}{PARTIAL}")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed while it wrote
        aside.mkdir(parents=True)
        parts = {name: part for group, named in tensors.items() for name, part in _parts(group, named)}
        files = dict(_side_by_side(lambda name: _write_tensors(aside / name, parts[name]), list(parts)))
        files[STATE] = _write(aside / STATE, json.dumps(state, indent=1).encode())
        _write(aside / MANIFEST, _manifest_text(files).encode())
        _sync_folder(aside)
        _put_in_place(aside, folder)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _one_line(error)
        raise StorageError(
            f"{folder}: the checkpoint could not be written: {reason}; earlier ones are unharmed; "
            "free space or choose another --train.out"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[Groups, dict[str, Any]]:
    """The tensors of each group, on `device`, and the state. Every file is verified before anything is returned.

    Raises CheckpointError naming what is missing, altered or of another format version.
    """
    tensors: Groups = {}
    state: dict[str, Any] = {}
    for name, data in _verified(folder):
        try:
            if name == STATE:
                state = json.loads(data)
            else:
                part = {key: value.to(device) for key, value in from_safetensors(data).items()}
                tensors.setdefault(name.partition(".")[0], {}).update(part)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{folder / name}: written wrongly, {_one_line(error)}; {ADVICE}") from None
    return tensors, state


def latest(checkpoints: Path, report: Callable[[str], None], up_to: float = math.inf) -> Path:
    """The newest complete and intact checkpoint, of step `up_to` at most; one reported line for each passed over.

    Raises CheckpointError if there is none.
    """
    for folder in complete(checkpoints):
        if step_of(folder) > up_to:
            continue
        try:
            for _ in _verified(folder):
                pass
            return folder
        except CheckpointError as error:
            report(f"passed over: {error}")
    raise CheckpointError(f"{checkpoints}: no intact checkpoint; start the run anew, or copy one here")


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def discard_after(checkpoints: Path, step: int) -> None:
    """Delete the checkpoints of later steps: of a run that has been rolled back they are not the continuation."""
    for folder in complete(checkpoints):
        if step_of(folder) > step:
            _delete(folder)


def complete(checkpoints: Path) -> list[Path]:
    """The checkpoints of a run, newest first, not verified. Those still being written have other names."""
    steps = {path: re.fullmatch(r"step-(\d+)", path.name) for path in (checkpoints.iterdir() if checkpoints.is_dir() else ())}
    found = {path: int(match[1]) for path, match in steps.items() if match}
    return sorted(found, key=lambda path: (found[path], path.name), reverse=True)


def tidy(checkpoints: Path) -> None:
    """Bring a folder that a killed process left behind in order: a checkpoint that was moved aside comes back unless its
    successor is in place; what was half written or half deleted goes."""
    for path in checkpoints.glob(".step-*") if checkpoints.is_dir() else ():
        place = checkpoints / path.stem.removeprefix(".")
        if path.suffix == REPLACED and not place.exists():
            path.rename(place)
        else:
            shutil.rmtree(path, ignore_errors=True)


def prune(checkpoints: Path, keep_last: int, keep_every: int) -> None:
    """Delete all but the `keep_last` newest checkpoints (0: none is deleted) and those of steps that `keep_every` divides.

    The newest is verified first, and nothing is deleted unless it is intact: the last good one always stays.
    """
    newest_first = complete(checkpoints)
    if not keep_last or len(newest_first) <= keep_last:
        return
    for _ in _verified(newest_first[0]):
        pass
    for folder in newest_first[keep_last:]:
        if not keep_every or step_of(folder) % keep_every:
            _delete(folder)


def _delete(folder: Path) -> None:
    """Out of sight first: a checkpoint that is there is whole."""
    shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}{DELETED}")), ignore_errors=True)


def random_state() -> dict[str, Tensor]:
    """The states of torch's generators: the CPU's and every GPU's. The system uses no others."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state()} | {f"cuda:{index}": state for index, state in enumerate(gpus)}


def set_random_state(states: dict[str, Tensor]) -> None:
    """Take over the states of the generators this machine has. Raises CheckpointError for what is no such state."""
    try:
        torch.set_rng_state(states["cpu"].cpu())
        for index in range(torch.cuda.device_count()):
            if f"cuda:{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda:{index}"].cpu(), index)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"random: no state of torch's generators, {_one_line(error)}; {ADVICE}") from None


def _verified(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each file's name and contents: what was hashed is what is parsed. A few files are in memory at a time."""
    files = _manifest(folder)

    def verified(name: str) -> bytes:
        data, expected = _read(folder / name), files[name]
        if len(data) != expected["bytes"]:
            raise CheckpointError(f"{folder / name}: {len(data)} bytes, where {expected['bytes']} were written; {ADVICE}")
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{folder / name}: altered since it was written, its SHA-256 differs; {ADVICE}")
        return data

    yield from _side_by_side(verified, list(files))


def _side_by_side(work: Callable[[str], Any], names: list[str]) -> Iterator[tuple[str, Any]]:
    """Each name with what is done for it, in their order, some at a time in threads."""
    if len(names) <= FEW:
        yield from ((name, work(name)) for name in names)
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="checkpoint") as pool:
        yield from zip(names, pool.map(work, names), strict=True)


def _parts(group: str, tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The files of a group: names and tensors."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        size += tensor.nbytes
        if size > PART_BYTES and parts[-1]:
            parts.append({})
            size = tensor.nbytes
        parts[-1][name] = tensor
    yield from ((f"{group}{f'.{number}' if number > 1 else ''}{TENSORS}", part) for number, part in enumerate(parts, start=1))


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The files by name. It must be exactly what `write` makes of them, so that no altered byte in it goes unseen."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no checkpoint here; name a step-* folder of a run's checkpoints")
    data = _read(folder / MANIFEST)
    try:
        manifest = json.loads(data)
        version, files = manifest["version"], manifest["files"]
        is_ours = all(set(entry) == {"bytes", "sha256"} and Path(name).name == name for name, entry in files.items())
        is_intact = is_ours and STATE in files and _manifest_text(files).encode() == data
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder / MANIFEST}: altered since it was written; {ADVICE}") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: checkpoint format {version}, this Moebius reads {FORMAT_VERSION}; use the version that wrote it"
        )
    if not is_intact:
        raise CheckpointError(f"{folder / MANIFEST}: altered since it was written; {ADVICE}")
    return files


def _manifest_text(files: dict[str, dict[str, Any]]) -> str:
    return json.dumps({"version": FORMAT_VERSION, "files": files}, indent=1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; {ADVICE}") from None


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """save_file, unlike save, lets other threads run meanwhile, and needs no second copy in memory."""
    save_file(tensors, path)
    digest = hashlib.sha256()
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _put_in_place(aside: Path, folder: Path) -> None:
    """Rename; a checkpoint of the same name is out of the way until the new one is in its place."""
    replaced = folder.with_name(f".{folder.name}{REPLACED}")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    try:
        aside.rename(folder)
    except OSError:
        if replaced.exists():
            replaced.rename(folder)
        raise
    _sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
