"""One checkpoint: safetensors and JSON in a folder, with a SHA-256 of every file.

No pickle is written or read. A checkpoint is written under a temporary name, synced, and renamed,
so a folder with its final name is complete. The manifest, which lists every file's size and hash,
is written last.
"""

import hashlib
import json
import os
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
CHUNK = 1 << 24  # bytes that are hashed at a time
PART_BYTES = 1 << 30  # largest file that holds more than one tensor
FEW = 4  # a checkpoint of up to this many files, that of a small model, is not worth threads
THREADS = 4  # for writing, hashing and reading; one thread hashes 1 to 2 GB/s
PARTIAL, REPLACED = ".partial", ".replaced"  # suffixes of folders that are not in place
ADVICE = "resume from another checkpoint, or copy this one again"

Groups = dict[str, dict[str, Tensor]]
"""Tensors by group ("model", "optimizer" or "random") and then by name."""


def save(folder: Path, tensors: Groups, state: dict[str, Any]) -> Path:
    """Write a checkpoint into `folder`, replacing the one that is there.

    Each group becomes NAME.safetensors; a large group continues in NAME.2.safetensors and so on.
    `state` becomes state.json. Raises StorageError, in which case the folder is left as it was.
    """
    return write(folder, snapshot(tensors), state)


def snapshot(tensors: Groups, into: Groups | None = None) -> Groups:
    """Return copies on the CPU, which later training steps do not change.

    Tied tensors are separated: each name gets its own copy. `into` is an earlier snapshot, whose
    tensors are reused where they fit. Copies of a GPU's tensors are in pinned memory, which is
    slow to allocate and several times faster to copy to.
    """
    into = into or {}
    copies = {
        group: {
            name: _copied(tensor.detach(), into.get(group, {}).get(name))
            for name, tensor in named.items()
        }
        for group, named in tensors.items()
    }
    if any(tensor.is_cuda for named in tensors.values() for tensor in named.values()):
        torch.cuda.synchronize()
    return copies


def write(folder: Path, tensors: Groups, state: dict[str, Any]) -> Path:
    """Save what `snapshot` returned. This neither uses the device nor makes training wait.

    Raises StorageError as `save` does.
    """
    aside = folder.with_name(f".{folder.name}{PARTIAL}")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed while writing
        aside.mkdir(parents=True)
        parts = {
            name: part for group, named in tensors.items() for name, part in _parts(group, named)
        }
        entries = _side_by_side(
            lambda name: _write_tensors(aside / name, parts[name]), list(parts)
        )
        files = dict(entries)
        files[STATE] = _write(aside / STATE, json.dumps(state, indent=1).encode())
        _write(aside / MANIFEST, _manifest_text(files).encode())
        _sync_folder(aside)
        _put_in_place(aside, folder)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or _one_line(error)
        raise StorageError(
            f"{folder}: the checkpoint could not be written: {reason}; "
            "earlier ones are unharmed; free space or choose another --train.out"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[Groups, dict[str, Any]]:
    """Return the tensors of each group, on `device`, and the state.

    Every file is verified before anything is returned. Raises CheckpointError, which names what is
    missing, altered or of another format version.
    """
    tensors: Groups = {}
    state: dict[str, Any] = {}
    for name, data in verified_files(folder):
        try:
            if name == STATE:
                state = json.loads(data)
            else:
                part = {key: value.to(device) for key, value in from_safetensors(data).items()}
                tensors.setdefault(name.partition(".")[0], {}).update(part)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"{folder / name}: cannot be parsed, {_one_line(error)}; {ADVICE}"
            ) from None
    return tensors, state


def verify(folder: Path) -> None:
    """Read a whole checkpoint. Raises CheckpointError if anything is not as it was written."""
    for _ in verified_files(folder):
        pass


def verified_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each file's name and verified contents.

    The contents are read once, so the bytes that are hashed are the bytes that are parsed. A few
    files are in memory at a time. Raises CheckpointError.
    """
    files = _manifest(folder)

    def verified(name: str) -> bytes:
        data, entry = _read(folder / name), files[name]
        if len(data) != entry["bytes"]:
            raise CheckpointError(
                f"{folder / name}: {len(data)} bytes, but {entry['bytes']} were written; {ADVICE}"
            )
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointError(
                f"{folder / name}: altered since it was written, its SHA-256 differs; {ADVICE}"
            )
        return data

    yield from _side_by_side(verified, list(files))


def random_state() -> dict[str, Tensor]:
    """Return the states of torch's generators on the CPU and every GPU. No others are used."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state()} | {f"cuda:{n}": state for n, state in enumerate(gpus)}


def set_random_state(states: dict[str, Tensor]) -> None:
    """Restore the states of those generators that this machine has.

    Raises CheckpointError for a tensor that is not the state of a generator.
    """
    try:
        torch.set_rng_state(states["cpu"].cpu())
        for index in range(torch.cuda.device_count()):
            if f"cuda:{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda:{index}"].cpu(), index)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"random: not the state of torch's generators, {_one_line(error)}; {ADVICE}"
        ) from None


def _copied(tensor: Tensor, buffer: Tensor | None) -> Tensor:
    if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return buffer.copy_(tensor, non_blocking=True)


def _side_by_side(work: Callable[[str], Any], names: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each name with the result of `work(name)`, in order; several run at a time."""
    if len(names) <= FEW:
        yield from ((name, work(name)) for name in names)
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="checkpoint") as pool:
        yield from zip(names, pool.map(work, names), strict=True)


def _parts(group: str, tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the name and the tensors of each file that a group is stored in."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        size += tensor.nbytes
        if size > PART_BYTES and parts[-1]:
            parts.append({})
            size = tensor.nbytes
        parts[-1][name] = tensor
    for number, part in enumerate(parts, start=1):
        yield f"{group}{f'.{number}' if number > 1 else ''}{TENSORS}", part


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries by file name.

    The file must be exactly what `write` writes for these entries, so that any altered byte is
    noticed.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no checkpoint here; name a step-* folder of a run's checkpoints"
        )
    data = _read(folder / MANIFEST)
    try:
        manifest = json.loads(data)
        version, files = manifest["version"], manifest["files"]
        is_ours = all(
            set(entry) == {"bytes", "sha256"} and Path(name).name == name
            for name, entry in files.items()
        )
        is_intact = is_ours and STATE in files and _manifest_text(files).encode() == data
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{folder / MANIFEST}: altered since it was written; {ADVICE}"
        ) from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: checkpoint format {version}, this Moebius reads {FORMAT_VERSION}; "
            "use the version that wrote it"
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
    """Write a file of tensors, sync it, and return its manifest entry.

    Unlike save, save_file lets other threads run, and needs no second copy in memory.
    """
    save_file(tensors, path)
    digest = hashlib.sha256()
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file, sync it, and return its manifest entry."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _put_in_place(aside: Path, folder: Path) -> None:
    """Rename a complete folder to its final name.

    An existing checkpoint of that name is moved out of the way first, and deleted once the new one
    is in place.
    """
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
