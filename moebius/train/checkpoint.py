"""One checkpoint: safetensors and JSON in a folder, with a SHA-256 of every file.

No pickle is written or read. A checkpoint is written under a temporary name, synced, and renamed,
so a folder with its final name is complete. The manifest, which lists every file's size and hash,
is written last. What was written is then read back, before anything older is deleted.
"""

import contextlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from moebius.config.paths import free_path
from moebius.data.cache import sync
from moebius.errors import CheckpointError, ForeignCheckpointError, StorageError, one_line
from moebius.train.checkpoint_file import (
    ADVICE,
    Entry,
    Piece,
    has_size,
    read_bytes,
    read_verified,
    tensor_pieces,
    tensors_in,
    verify_file,
    write_file,
)
from moebius.train.checkpoint_state import (
    PARSING_ERRORS,
    STATE,
    parsed,
    parsed_state,
)

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
TENSORS = ".safetensors"
PART_BYTES = 1 << 27  # largest file that holds more than one tensor; threads share the files
FEW = 4  # a checkpoint of up to this many files, that of a small model, is not worth threads
THREADS = 4  # for writing, hashing and reading; one thread hashes 1 to 2 GB/s
PARTIAL, REPLACED = ".partial", ".replaced"  # suffixes of folders that are not in place
DAMAGED = ".damaged"  # suffix of a folder that cannot be loaded; a person may delete it

Groups = dict[str, dict[str, Tensor]]
"""Tensors by group ("model", "optimizer" or "random") and then by name."""


def save(folder: Path, tensors: Groups, state: dict[str, Any]) -> Path:
    """Write a checkpoint into `folder`, replacing the one that is there.

    Each group becomes NAME.safetensors; a large group continues in NAME.2.safetensors and so on.
    `state` becomes state.json. Raises StorageError, in which case the folder is left as it was.
    """
    return write(folder, snapshot(tensors), state)


def snapshot(
    tensors: Groups,
    into: Groups | None = None,
    whole: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> Groups:
    """Return copies on the CPU, which later training steps do not change.

    whole: returns the whole of a tensor, given its name and the part of it that this process has.

    Tied tensors are separated: each name gets its own copy. `into` is an earlier snapshot, whose
    tensors are reused where they fit. Copies of a GPU's tensors are in pinned memory, which is
    slow to allocate and several times faster to copy to.
    """
    into = into or {}
    copies = {
        group: {
            name: _copied(whole(name, tensor.detach()), into.get(group, {}).get(name))
            for name, tensor in named.items()
        }
        for group, named in tensors.items()
    }
    if any(tensor.is_cuda for named in tensors.values() for tensor in named.values()):
        torch.cuda.synchronize()
    return copies


def write(folder: Path, tensors: Groups, state: dict[str, Any]) -> Path:
    """Save what `snapshot` returned. This neither uses the device nor makes training wait.

    Once it is in place, it is read back and compared with the hashes of the tensors. If it
    differs, it is set aside, what it replaced is put back, and StorageError is raised. Raises
    StorageError as `save` does, too.
    """
    aside = folder.with_name(f".{folder.name}{PARTIAL}")
    try:
        remove(aside)  # left by a process that was killed while writing
        folder.parent.mkdir(exist_ok=True)  # but never the run's directory
        aside.mkdir()
        parts = {
            name: part for group, named in tensors.items() for name, part in _parts(group, named)
        }
        entries = _side_by_side(
            lambda name: _write_tensors(aside / name, parts[name]), list(parts)
        )
        files = dict(entries)
        files[STATE] = _write(aside / STATE, json.dumps(state, indent=1).encode())
        _write(aside / MANIFEST, _manifest_text(files).encode())
        sync(aside)
        _put_in_place(aside, folder, files)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise StorageError(
            f"{folder}: the checkpoint could not be written: {reason}; "
            "free space or choose another --train.out"
        ) from None
    finally:
        remove(aside)
    return folder


def load(
    folder: Path, device: torch.device | str = "cpu", only: str = ""
) -> tuple[Groups, dict[str, Any]]:
    """Return the tensors of each group, on `device`, and the state.

    With `only`, the other groups are neither read nor verified. All other files are verified
    before anything is returned. On the CPU, the tensors share the memory that the files were read
    into, so that loading takes a checkpoint's size once. Raises CheckpointError, which names what
    is missing, altered or of another format version.
    """
    tensors: Groups = {}
    state: dict[str, Any] = {}
    for name, data in verified_files(folder, only):
        if name == STATE:
            state = parsed_state(folder, data)
        else:
            content = parsed(folder / name, data, tensors_in)
            part = {key: value.to(device) for key, value in content.items()}
            tensors.setdefault(name.partition(".")[0], {}).update(part)
    return tensors, state


def verify(folder: Path) -> dict[str, Any]:
    """Read a whole checkpoint and return its state.

    Raises CheckpointError if anything is not as it was written, or if it is not the checkpoint of
    the step in its name.
    """
    files = _manifest(folder)
    _verify(folder, files)
    return parsed_state(folder, read_verified(folder / STATE, files[STATE]))


def read_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's state. Raises CheckpointError if it is not as it was written.

    The tensors are not read.
    """
    return parsed_state(folder, read_verified(folder / STATE, _manifest(folder)[STATE]))


def verified_files(folder: Path, only: str = "") -> Iterator[tuple[str, bytearray]]:
    """Yield each file's name and verified contents.

    With `only`, these are the files of that group and state.json. The contents are read once, so
    the bytes that are hashed are the bytes that are parsed. A few files are in memory at a time.
    Raises CheckpointError.
    """
    files = _manifest(folder)
    if only:
        files = {n: entry for n, entry in files.items() if n.partition(".")[0] in (only, "state")}
    yield from _side_by_side(lambda name: read_verified(folder / name, files[name]), list(files))


def seems_whole(folder: Path) -> bool:
    """Return whether a checkpoint's files are all there with the right sizes.

    Only the state is read, so this takes no time, and says nothing about the tensors.
    """
    try:
        read_state(folder)
        return all(has_size(folder / name, entry) for name, entry in _manifest(folder).items())
    except CheckpointError:
        return False


def set_aside(folder: Path) -> Path:
    """Rename what cannot be loaded, so that it is no checkpoint any more, and return its new name.

    Nothing is deleted. Raises OSError.
    """
    return folder.rename(free_path(folder.with_name(folder.name + DAMAGED)))


def remove(path: Path) -> None:
    """Delete a folder, a file or a link if it is there; what cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def random_state() -> dict[str, Tensor]:
    """Return the states of torch's generators on the CPU and every GPU. No others are used."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state()} | {f"cuda:{n}": state for n, state in enumerate(gpus)}


def set_random_state(states: dict[str, Tensor]) -> None:
    """Restore the states of those generators that this machine has.

    Raises CheckpointError as `check_random_state` does; nothing is restored then.
    """
    own = check_random_state(states)
    torch.set_rng_state(own.pop("cpu"))
    for device, state in own.items():
        torch.cuda.set_rng_state(state, device)


def check_random_state(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the states of those generators that this machine has, ready to be restored.

    Raises CheckpointError for a tensor that is not the state of a generator.
    """
    try:
        # Copies, because torch reads a state from the beginning of its storage, and the tensors of
        # a file share one storage.
        own = {"cpu": states["cpu"].cpu().clone()}
        for index in range(torch.cuda.device_count()):
            if f"cuda:{index}" in states:
                own[f"cuda:{index}"] = states[f"cuda:{index}"].cpu().clone()
        for device, state in own.items():
            torch.Generator(device).set_state(state)  # refuses what is no state
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"random: not the state of torch's generators, {one_line(error)}; {ADVICE}"
        ) from None
    return own


def _copied(tensor: Tensor, buffer: Tensor | None) -> Tensor:
    if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return buffer.copy_(tensor, non_blocking=True)


def _side_by_side(work: Callable[[str], Any], names: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each name with the result of `work(name)`, in order; several run at a time.

    No more results wait to be used than there are threads, because each may be a gigabyte.
    """
    if len(names) <= FEW:
        yield from ((name, work(name)) for name in names)
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="checkpoint") as pool:
        running: deque[tuple[str, Future[Any]]] = deque()
        for name in names:
            if len(running) == THREADS:
                first, result = running.popleft()
                yield first, result.result()
            running.append((name, pool.submit(work, name)))
        for name, result in running:
            yield name, result.result()


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


def _manifest(folder: Path) -> dict[str, Entry]:
    """Return the manifest's entries by file name.

    The file must be exactly what `write` writes for these entries, so that any altered byte is
    noticed.
    """
    try:
        is_folder = folder.is_dir()
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror or error}; {ADVICE}") from None
    if not is_folder:
        raise CheckpointError(
            f"{folder}: no checkpoint here; name a step-* folder of a run's checkpoints"
        )
    data = read_bytes(folder / MANIFEST)
    try:
        manifest = json.loads(data)
        version = manifest["version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ForeignCheckpointError(
                f"{folder}: checkpoint format {version}, this Moebius reads {FORMAT_VERSION}; "
                "use the version that wrote it"
            )
        files = manifest["files"]
        is_ours = all(
            set(entry) == {"bytes", "sha256"} and Path(name).name == name
            for name, entry in files.items()
        )
        is_intact = is_ours and STATE in files and _manifest_text(files).encode() == data
    except (*PARSING_ERRORS, AttributeError):
        raise CheckpointError(
            f"{folder / MANIFEST}: altered since it was written; {ADVICE}"
        ) from None
    if not is_intact:
        raise CheckpointError(f"{folder / MANIFEST}: altered since it was written; {ADVICE}")
    return files


def _manifest_text(files: dict[str, Entry]) -> str:
    return json.dumps({"version": FORMAT_VERSION, "files": files}, indent=1)


def _verify(folder: Path, files: dict[str, Entry]) -> None:
    for _ in _side_by_side(lambda name: verify_file(folder / name, files[name]), list(files)):
        pass


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> Entry:
    """Write a file of tensors, sync it, and return its manifest entry."""
    return write_file(path, tensor_pieces(tensors))


def _write(path: Path, data: Piece) -> Entry:
    """Write a file, sync it, and return its manifest entry."""
    return write_file(path, [data])


def _put_in_place(aside: Path, folder: Path, files: dict[str, Entry]) -> None:
    """Rename a complete folder to its final name, and compare it with the entries of its files.

    It is in place before it is compared, because a process that is about to be killed may not have
    the time to read it. An existing checkpoint of that name is moved out of the way first, put
    back if anything fails, and deleted once the new one was read back. Raises OSError, and
    StorageError if the new one differs.
    """
    replaced = folder.with_name(f".{folder.name}{REPLACED}")
    remove(replaced)
    if os.path.lexists(folder):
        folder.rename(replaced)
    try:
        aside.rename(folder)
        sync(folder.parent)
        _compare(folder, files)
    except (OSError, StorageError):
        if os.path.lexists(folder):
            folder.rename(aside)
        if os.path.lexists(replaced):
            replaced.rename(folder)
        raise
    remove(replaced)


def _compare(folder: Path, files: dict[str, Entry]) -> None:
    """Compare a checkpoint that was just written with the entries of what was meant.

    If it differs, it is set aside, and StorageError is raised.
    """
    try:
        if _manifest(folder) != files:
            raise CheckpointError(f"{folder / MANIFEST}: altered since it was written")
        _verify(folder, files)
    except CheckpointError as error:
        reason = str(error).removesuffix(f"; {ADVICE}")
        raise StorageError(
            f"just written, but not readable: {reason}; set aside as {set_aside(folder).name}, "
            "older checkpoints are kept; check the disk, or choose another --train.out"
        ) from None
