"""One file of a checkpoint: hashed from memory while it is written, and compared with that later.

A hash of what was read back would confirm whatever the disk has. Here it is of the bytes that
were meant to be written, so a flipped bit or a write that never reached the disk is a difference.
"""

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moebius.errors import CheckpointError

CHUNK = 1 << 20  # bytes that are hashed and written, or read and hashed, at a time
ADVICE = "resume from another checkpoint, or copy this one again"
LENGTH = 8  # bytes of the number with which a safetensors file begins: the length of its header

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""torch's dtypes by the names that safetensors files have for them."""
CODES = {dtype: code for code, dtype in DTYPES.items()}

Piece = bytes | memoryview
Entry = dict[str, Any]
"""A file's size in bytes and its SHA-256, as the manifest lists them: `bytes` and `sha256`."""


def write_file(path: Path, pieces: Iterable[Piece]) -> Entry:
    """Write the pieces one after another, sync the file, and return its entry."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), CHUNK):
                chunk = view[start : start + CHUNK]
                digest.update(chunk)
                file.write(chunk)
            size += len(view)
        file.flush()
        os.fsync(file.fileno())
        _uncache(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def tensor_pieces(tensors: dict[str, Tensor]) -> Iterator[Piece]:
    """Yield the bytes of a safetensors file: its header, and then each tensor without a copy.

    The format is at https://huggingface.co/docs/safetensors. The library either writes the file
    itself, so that its bytes cannot be hashed, or returns them, which takes a second copy in
    memory. Like the library, this puts the widest numbers first, so that every tensor is aligned.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in ordered:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": CODES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH)
    yield len(text).to_bytes(LENGTH, "little") + text
    for name in ordered:
        yield tensors[name].detach().reshape(-1).view(torch.uint8).numpy().data


def tensors_in(data: bytearray) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; they share the memory of its bytes.

    The library copies every tensor, so that a checkpoint needs its size twice. Raises one of
    several errors for bytes that make no sense, such as ValueError or LookupError.
    """
    start = LENGTH + int.from_bytes(data[:LENGTH], "little")
    header = json.loads(data[LENGTH:start]) if start <= len(data) else None
    if not isinstance(header, dict):
        raise ValueError("its header is not whole")
    header.pop("__metadata__", None)
    content_X = torch.frombuffer(data, dtype=torch.uint8)[start:]
    tensors: dict[str, Tensor] = {}
    for name, entry in header.items():
        dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        size = math.prod(entry["shape"]) * dtype.itemsize
        if not 0 <= begin <= end <= len(content_X) or size != end - begin:
            raise ValueError(f"{name} is not where its header says")
        flat_X = content_X[begin:end]
        if (start + begin) % dtype.itemsize:  # other programs do not always align tensors
            flat_X = flat_X.clone()
        tensors[name] = flat_X.view(dtype).view(entry["shape"])
    if sum(tensor.nbytes for tensor in tensors.values()) != len(content_X):
        raise ValueError("some of its bytes belong to no tensor")
    return tensors


def read_verified(path: Path, entry: Entry) -> bytearray:
    """Return a file's contents. Raises CheckpointError if they are not what was written.

    They are hashed piece by piece while they are read, so that the bytes that are hashed are the
    ones that are returned, and are in memory only once.
    """
    _check_size(path, entry)
    data, digest, size = bytearray(entry["bytes"]), hashlib.sha256(), 0
    view = memoryview(data)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(view[size : size + CHUNK]):
                digest.update(view[size : size + count])
                size += count
    except OSError as error:
        raise _unreadable(path, error) from None
    _compare(path, size, digest.hexdigest(), entry)
    return data


def verify_file(path: Path, entry: Entry) -> None:
    """Compare a file with its entry, a chunk at a time. Raises CheckpointError if it differs."""
    _check_size(path, entry)
    digest, size = hashlib.sha256(), 0
    try:
        buffer = memoryview(bytearray(CHUNK))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                size += count
    except OSError as error:
        raise _unreadable(path, error) from None
    _compare(path, size, digest.hexdigest(), entry)


def read_bytes(path: Path) -> bytes:
    """Return a file's contents without comparing them. Raises CheckpointError."""
    _size_of(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def has_size(path: Path, entry: Entry) -> bool:
    """Return whether the file is there and has its size, without reading it."""
    try:
        _check_size(path, entry)
    except CheckpointError:
        return False
    return True


def _uncache(descriptor: int) -> None:
    """Make the system forget its own copy of a synced file, so that it is read from the disk.

    The page cache would answer with what it was given even if the disk never got it. Where the
    system has no such call, or the file lives in memory, reading back checks only that copy; the
    hash still finds the damage when the checkpoint is loaded.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # advice; some file systems do not take it
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _check_size(path: Path, entry: Entry) -> None:
    """Raise CheckpointError, before anything is read, if this is no file of the entry's size."""
    size = _size_of(path)
    if size != entry["bytes"]:
        raise CheckpointError(f"{path}: {size} bytes, but {entry['bytes']} were written; {ADVICE}")


def _size_of(path: Path) -> int:
    """Return a file's size. Raises CheckpointError for what is no file, such as a folder."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: no path can have such a name
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: not a file; {ADVICE}")
    return status.st_size


def _compare(path: Path, size: int, sha256: str, entry: Entry) -> None:
    if (size, sha256) != (entry["bytes"], entry["sha256"]):
        raise CheckpointError(
            f"{path}: altered since it was written, its SHA-256 differs; {ADVICE}"
        )


def _unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return CheckpointError(f"{path}: {reason}; {ADVICE}")
