"""Write token shards: files of raw token ids, files with their checksums, and one meta.json.

The ids are little-endian. A shard's `.crc` file has a CRC-32 of each of its blocks, and meta.json
describes all shards of a folder.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moebius.data.messages import one_line
from moebius.data.sealed import read_sealed, write_sealed
from moebius.data.tally import Tally
from moebius.errors import DataError

FORMAT_VERSION = 4
META = "meta.json"
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "val")
SHARD_TOKENS = 2**27
"""Largest number of tokens in one shard."""
BLOCK_BYTES = 2**16
"""Bytes of a shard per checksum. Checking a block takes 50 us, and the checksums of a terabyte
take 64 MB."""
CHECKSUM = np.dtype("<u4")


@dataclass
class Shard:
    """One file of token ids."""

    file: str
    """Name of the file in the corpus folder."""
    tokens: int
    """Number of tokens in the file."""
    sha256: str
    """SHA-256 of the `.crc` file, which holds the checksums of the shard's blocks."""

    @property
    def checksums(self) -> str:
        """The name of the file with the checksums."""
        return f"{Path(self.file).stem}.crc"


@dataclass
class Split:
    """The sizes and the shards of one split, `train` or `val`, of a source."""

    tokens: int = 0
    """Number of tokens, separators included."""
    documents: int = 0
    bytes: int = 0
    """Bytes of UTF-8 text in the documents, without separators."""
    shards: list[Shard] = field(default_factory=list)
    """The shards that are complete, in order."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Split":
        """Return the split that meta.json describes. Raises TypeError, KeyError or ValueError."""
        shards = [Shard(**shard) for shard in values["shards"]]
        if any(Path(shard.file).name != shard.file for shard in shards):
            raise ValueError("a shard outside the folder")
        split = cls(**values)
        split.shards = shards
        return split


@dataclass(kw_only=True)
class Meta:
    """The contents of meta.json."""

    version: int = FORMAT_VERSION
    dtype: str
    """NumPy name of the shards' dtype, uint16 or uint32."""
    vocab_size: int
    """Number of ids of the tokenizer."""
    end_of_text: int
    """Id of the separator with which each document begins."""
    tokenizer_sha256: str
    """SHA-256 of tokenizer.json in the same folder."""
    tally: Tally
    """What was read from the source, and what was not."""
    held_out_below: float
    """Hash below which a document is held out: data.val_fraction, unless the source has so few
    documents that more of them are held out."""
    lossy: str
    """The first text that the tokenizer does not give back, and what it becomes, or ""."""
    splits: dict[str, Split]
    """The splits by name."""

    def write(self, folder: Path) -> None:
        """Write meta.json into the folder. Raises OSError."""
        write_sealed(folder / META, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Meta":
        """Return the contents of the folder's meta.json.

        Raises DataError if the file is missing, damaged, changed or of another version of the
        format.
        """
        path, remedy = folder / META, f"delete {folder} to prepare it again"
        try:
            version = json.loads(path.read_bytes())["version"]
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{path}: has format {version}, but this Moebius reads {FORMAT_VERSION}; "
                    f"{remedy}"
                )
            values = read_sealed(path)
            splits = values.pop("splits").items()
            tally = Tally.from_json(values.pop("tally"))
            meta = cls(
                splits={name: Split.from_json(split) for name, split in splits},
                tally=tally,
                **values,
            )
            if meta.dtype != (expected := token_dtype(meta.vocab_size).name):
                raise DataError(
                    f"{path}: dtype {meta.dtype}, but {meta.vocab_size} ids are stored as "
                    f"{expected}; {remedy}"
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: not readable ({type(error).__name__}: {one_line(error)}); {remedy}"
            ) from None
        return meta


class ShardWriter:
    """A context manager that appends tokens to the shards of one split.

    The files are `folder/NAME-00000.bin` and so on, of `shard_tokens` tokens at most. A token
    takes 2 bytes if `vocab_size` allows it, else 4. Pass `split` to continue the work of an
    earlier writer: it is that writer's split as it was last synced, and anything that the earlier
    writer wrote after that is cut off. Exiting the with block only closes the open file; call
    `finish` first.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        vocab_size: int,
        shard_tokens: int = SHARD_TOKENS,
        split: Split | None = None,
    ):
        self.folder = folder
        self.name = name
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

    def append(self, tokens: bytes, num_documents: int, num_bytes: int) -> None:
        """Append tokens of the shards' dtype, which begin that many documents.

        `num_bytes` is the number of bytes of UTF-8 text to count for them. Raises OSError.
        """
        self.split.documents += num_documents
        self.split.bytes += num_bytes
        rest = memoryview(tokens)
        while rest:
            room = (self.shard_tokens - self._in_shard) * self.dtype.itemsize
            self._write(rest[:room])
            rest = rest[room:]

    def sync(self) -> None:
        """Make sure that everything `split` counts is on the disk. Raises OSError."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> Split:
        """Complete the last shard, sync it and return the split. Raises OSError."""
        self._end_shard()
        return self.split

    def _next_path(self) -> Path:
        return self.folder / shard_file(self.name, len(self.split.shards))

    def _write(self, tokens: memoryview) -> None:
        if self._file is None:
            self._file = self._next_path().open("wb")
        self._file.write(tokens)
        self._in_shard += len(tokens) // self.dtype.itemsize
        self.split.tokens += len(tokens) // self.dtype.itemsize
        if self._in_shard == self.shard_tokens:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self.sync()
        self._file.close()
        path = Path(self._file.name)
        checksums = np.fromiter(
            (zlib.crc32(block) for block in _blocks(path)), dtype=CHECKSUM
        ).tobytes()
        shard = Shard(path.name, self._in_shard, hashlib.sha256(checksums).hexdigest())
        with (self.folder / shard.checksums).open("wb") as file:
            file.write(checksums)
            file.flush()
            os.fsync(file.fileno())
        self.split.shards.append(shard)
        self._file, self._in_shard = None, 0


def shard_file(name: str, number: int) -> str:
    """Return the name of the file of a split's shard, counted from 0."""
    return f"{name}-{number:05d}.bin"


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the dtype of stored ids: little-endian uint16 up to 65,536 ids, else uint32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's contents, or an empty string if there is no such file."""
    digest = hashlib.sha256()
    try:
        for block in _blocks(file):
            digest.update(block)
    except FileNotFoundError:
        return ""
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
