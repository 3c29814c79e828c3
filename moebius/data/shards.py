"""Token shards: raw little-endian ids in files, checksums of their blocks beside them, and a meta.json about them all."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moebius.errors import DataError

FORMAT_VERSION = 3
META = "meta.json"
TOKENIZER = "tokenizer.json"
SHARD_TOKENS = 2**27
BLOCK_BYTES = 2**16  # a CRC-32 each: checking one takes 50 us, and of a terabyte they are 64 MB
CHECKSUM = np.dtype("<u4")


@dataclass
class Shard:
    """A file of a split. sha256: of the file of its blocks' checksums."""

    file: str
    tokens: int
    sha256: str

    @property
    def checksums(self) -> str:
        """Name of that file."""
        return f"{Path(self.file).stem}.crc"


@dataclass
class Split:
    """What a split holds; `bytes` of UTF-8 text, separators not counted."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    shards: list[Shard] = field(default_factory=list)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Split":
        """From JSON. Raises TypeError, KeyError, ValueError."""
        split = cls(**values)
        split.shards = [Shard(**shard) for shard in split.shards]  # pyright: ignore[reportCallIssue]
        if any(Path(shard.file).name != shard.file for shard in split.shards):
            raise ValueError("a shard outside the folder")
        return split


@dataclass(kw_only=True)
class Meta:
    """The contents of meta.json."""

    version: int = FORMAT_VERSION
    dtype: str
    vocab_size: int
    end_of_text: int
    tokenizer_sha256: str
    skipped: int
    splits: dict[str, Split]

    def write(self, folder: Path) -> None:
        (folder / META).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Meta":
        """Raises DataError if it is missing, damaged or of another format."""
        path, remedy = folder / META, f"delete {folder} to prepare it again"
        try:
            values = json.loads(path.read_bytes())
            version = values["version"]
            if version != FORMAT_VERSION:
                raise DataError(f"{path}: format {version}, this Moebius reads {FORMAT_VERSION}; {remedy}")
            meta = cls(splits={name: Split.of(split) for name, split in values.pop("splits").items()}, **values)
            if meta.dtype != (expected := token_dtype(meta.vocab_size).name):
                raise DataError(f"{path}: dtype {meta.dtype}, but {meta.vocab_size} ids are stored as {expected}; {remedy}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: not readable ({type(error).__name__}: {reason}); {remedy}") from None
        return meta


class ShardWriter:
    """Appends documents to a split's shards, 16 bits a token where the vocabulary allows. A context manager.

    split: what an earlier writer had written when it was last synced; the rest of its last file is cut off.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        vocab_size: int,
        end_of_text: int,
        shard_tokens: int = SHARD_TOKENS,
        split: Split | None = None,
    ):
        self.folder, self.name, self.vocab_size, self.end_of_text = folder, name, vocab_size, end_of_text
        self.shard_tokens = shard_tokens
        self.dtype = token_dtype(vocab_size)
        self.split = split or Split()
        self._file: BinaryIO | None = None
        self._in_shard = self.split.tokens - sum(shard.tokens for shard in self.split.shards)
        if self._in_shard:
            self._file = self._next_path().open("r+b")
            self._file.truncate(self._in_shard * self.dtype.itemsize)
            self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, ids: np.ndarray, num_bytes: int, begins: bool = True) -> None:
        """Ids (n,) of a document of `num_bytes` bytes of UTF-8, or of its next piece; where one begins, its separator, the
        end-of-text id, is stored first.

        Raises DataError for an id past the vocabulary (none is truncated) and for a separator inside the document.
        """
        if ids.size and (ids.max() >= self.vocab_size or ids.min() < 0):
            worst = ids.max() if ids.min() >= 0 else ids.min()
            raise DataError(
                f"token id {worst} is past the vocabulary of {self.vocab_size}; set --model.vocab_size {ids.max() + 1}"
            )
        if (ids == self.end_of_text).any():
            raise DataError(f"the tokenizer turned text into its end-of-text id {self.end_of_text}; give it a special token")
        tokens = ids.astype(self.dtype)
        if begins:
            tokens = np.concatenate([np.array([self.end_of_text], dtype=self.dtype), tokens])
        self.split.documents += begins
        self.split.bytes += num_bytes
        while tokens.size:
            room = self.shard_tokens - self._in_shard
            self._write(tokens[:room])
            tokens = tokens[room:]

    def sync(self) -> None:
        """From here on what `split` says is on the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> Split:
        """End the last shard and sync."""
        self._end_shard()
        return self.split

    def _next_path(self) -> Path:
        return self.folder / f"{self.name}-{len(self.split.shards):05d}.bin"

    def _write(self, tokens: np.ndarray) -> None:
        if self._file is None:
            self._file = self._next_path().open("wb")
        self._file.write(tokens.tobytes())
        self._in_shard += tokens.size
        self.split.tokens += tokens.size
        if self._in_shard == self.shard_tokens:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self.sync()
        self._file.close()
        path = Path(self._file.name)
        checksums = np.fromiter((zlib.crc32(block) for block in _blocks(path)), dtype=CHECKSUM).tobytes()
        shard = Shard(path.name, self._in_shard, hashlib.sha256(checksums).hexdigest())
        with (self.folder / shard.checksums).open("wb") as file:
            file.write(checksums)
            file.flush()
            os.fsync(file.fileno())
        self.split.shards.append(shard)
        self._file, self._in_shard = None, 0


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 up to 65,536 ids, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def file_sha256(file: Path) -> str:
    """Of its bytes; empty if there is no such file."""
    found = hashlib.sha256()
    try:
        for block in _blocks(file):
            found.update(block)
    except FileNotFoundError:
        return ""
    return found.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
