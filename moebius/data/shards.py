"""Token shards: raw little-endian ids in files, memory-mapped, with a meta.json that says what they are."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moebius.errors import DataError

FORMAT_VERSION = 1
META = "meta.json"
SHARD_TOKENS = 2**27


@dataclass
class Split:
    """What a split holds; `shards` has each file's tokens and SHA-256."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)


class ShardWriter:
    """Appends documents to a split's shards, 16 bits a token where the vocabulary allows."""

    def __init__(self, folder: Path, split: str, vocab_size: int):
        self.folder, self.name, self.vocab_size = folder, split, vocab_size
        self.dtype = token_dtype(vocab_size)
        self.split = Split()
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._in_shard = 0

    def append(self, tokens: list[int], num_bytes: int) -> None:
        """One document of `num_bytes` bytes of UTF-8. Raises DataError for an id past the vocabulary: none is truncated."""
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.size and (ids.max() >= self.vocab_size or ids.min() < 0):
            raise DataError(
                f"token id {ids.max()} is past the vocabulary of {self.vocab_size}; set --model.vocab_size {ids.max() + 1}"
            )
        self.split.documents += 1
        self.split.bytes += num_bytes
        while ids.size:
            room = SHARD_TOKENS - self._in_shard
            self._write(ids[:room])
            ids = ids[room:]

    def close(self) -> Split:
        """Finish the last shard."""
        self._end_shard()
        return self.split

    def _write(self, ids: np.ndarray) -> None:
        if self._file is None:
            self._file = (self.folder / f"{self.name}-{len(self.split.shards):05d}.bin").open("wb")
        data = ids.astype(self.dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._in_shard += ids.size
        self.split.tokens += ids.size
        if self._in_shard == SHARD_TOKENS:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self.split.shards[Path(self._file.name).name] = {"tokens": self._in_shard, "sha256": self._hash.hexdigest()}
        self._file, self._hash, self._in_shard = None, hashlib.sha256(), 0


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 up to 65,536 ids, else uint32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def write_meta(folder: Path, vocab_size: int, splits: dict[str, Split]) -> None:
    """meta.json, the last file of a prepared folder."""
    meta = {
        "version": FORMAT_VERSION,
        "vocab_size": vocab_size,
        "splits": {name: vars(split) for name, split in splits.items()},
    }
    (folder / META).write_text(json.dumps(meta, indent=1))


class TokenStream:
    """A split's tokens in order, read from memory-mapped shards."""

    def __init__(self, folder: Path, name: str):
        """Raises DataError if a shard is missing or not of the length that meta.json says."""
        meta = _read_meta(folder)
        split = Split(**meta["splits"][name])
        self.vocab_size: int = meta["vocab_size"]
        self.num_documents, self.num_bytes = split.documents, split.bytes
        self._shards = [
            _map(folder / file, shard["tokens"], token_dtype(self.vocab_size)) for file, shard in split.shards.items()
        ]
        self._files = [folder / file for file in split.shards]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 as int64. Raises DataError, with the shard and the place, for an id past the vocabulary."""
        parts = []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for index in range(first, len(self._shards)):
            begin = int(self._starts[index])
            if begin >= stop:
                break
            part = np.asarray(self._shards[index][max(start - begin, 0) : stop - begin], dtype=np.int64)
            if part.size and part.max() >= self.vocab_size:
                offset = max(start - begin, 0) + int(part.argmax())
                raise DataError(
                    f"{self._files[index]}: token {offset} has id {part.max()}, past the vocabulary of {self.vocab_size}"
                )
            parts.append(part)
        return np.concatenate(parts)


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META).read_text())
        version = meta["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / META}: not readable ({type(error).__name__}); delete {folder} to prepare it again"
        ) from None
    if version != FORMAT_VERSION:
        raise DataError(f"{folder}: shard format {version}; this Moebius reads {FORMAT_VERSION}: delete the folder")
    return meta


def _map(file: Path, tokens: int, dtype: np.dtype) -> np.ndarray:
    expected = tokens * dtype.itemsize
    size = file.stat().st_size if file.exists() else 0
    if size != expected:
        raise DataError(f"{file}: {size} bytes, {expected} were written; delete {file.parent} to prepare it again")
    return np.memmap(file, dtype=dtype, mode="r")
