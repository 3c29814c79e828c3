"""Token shards: raw little-endian ids in files, memory-mapped, with a meta.json that says what they are."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from moebius.errors import DataError

FORMAT_VERSION = 2
META = "meta.json"
TOKENIZER = "tokenizer.json"
SHARD_TOKENS = 2**27
VERIFIED_BYTES = 2**20  # read at once


@dataclass
class Shard:
    """A file of a split."""

    file: str
    tokens: int
    sha256: str


@dataclass
class Split:
    """What a split holds; `bytes` of UTF-8 text, separators not counted."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    shards: list[Shard] = field(default_factory=list)


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
            splits = {name: Split(**split) for name, split in values.pop("splits").items()}
            for split in splits.values():
                split.shards = [Shard(**shard) for shard in split.shards]  # pyright: ignore[reportCallIssue]
            meta = cls(splits=splits, **values)
            if any(Path(shard.file).name != shard.file for split in splits.values() for shard in split.shards):
                raise ValueError("a shard outside the folder")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: not readable ({type(error).__name__}: {reason}); {remedy}") from None
        return meta


class ShardWriter:
    """Appends documents to a split's shards, 16 bits a token where the vocabulary allows. A context manager."""

    def __init__(self, folder: Path, name: str, vocab_size: int, end_of_text: int, shard_tokens: int = SHARD_TOKENS):
        self.folder, self.name, self.vocab_size, self.end_of_text = folder, name, vocab_size, end_of_text
        self.shard_tokens = shard_tokens
        self.dtype = token_dtype(vocab_size)
        self.split = Split()
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._in_shard = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, ids: list[int], num_bytes: int) -> None:
        """A document of `num_bytes` bytes of UTF-8, stored as its separator, the end-of-text id, and then `ids`.

        Raises DataError for an id past the vocabulary (none is truncated) and for a separator inside the document.
        """
        tokens = np.empty(len(ids) + 1, dtype=np.int64)
        tokens[0], tokens[1:] = self.end_of_text, ids
        if tokens.max() >= self.vocab_size or tokens.min() < 0:
            worst = tokens.max() if tokens.min() >= 0 else tokens.min()
            raise DataError(
                f"token id {worst} is past the vocabulary of {self.vocab_size}; set --model.vocab_size {tokens.max() + 1}"
            )
        if (tokens[1:] == self.end_of_text).any():
            raise DataError(f"the tokenizer turned text into its end-of-text id {self.end_of_text}; give it a special token")
        self.split.documents += 1
        self.split.bytes += num_bytes
        while tokens.size:
            room = self.shard_tokens - self._in_shard
            self._write(tokens[:room])
            tokens = tokens[room:]

    def finish(self) -> Split:
        """End the last shard: from here on the split is on the disk."""
        self._end_shard()
        return self.split

    def _write(self, tokens: np.ndarray) -> None:
        if self._file is None:
            self._file = (self.folder / f"{self.name}-{len(self.split.shards):05d}.bin").open("wb")
        data = tokens.astype(self.dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._in_shard += tokens.size
        self.split.tokens += tokens.size
        if self._in_shard == self.shard_tokens:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.split.shards.append(Shard(Path(self._file.name).name, self._in_shard, self._hash.hexdigest()))
        self._file, self._hash, self._in_shard = None, hashlib.sha256(), 0


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 up to 65,536 ids, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class TokenStream:
    """A split's tokens in order, over all its memory-mapped shards. `num_bytes`: of the UTF-8 text they stand for."""

    def __init__(self, shards: dict[Path, np.ndarray], vocab_size: int, num_documents: int, num_bytes: int):
        self.vocab_size, self.num_documents, self.num_bytes = vocab_size, num_documents, num_bytes
        self._files, self._shards = list(shards), list(shards.values())
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start:stop] as int64. Raises IndexError past the end, DataError for an id past the vocabulary."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a stream of {len(self)}")
        tokens = np.empty(stop - start, dtype=np.int64)
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            begin, end = int(self._starts[index]), min(stop, int(self._starts[index + 1]))
            part = tokens[at - start : end - start]
            part[:] = self._shards[index][at - begin : end - begin]
            if part.max() >= self.vocab_size:  # a damaged file; on a GPU it would be an assertion without a place
                raise DataError(
                    f"{self._files[index]}: token {at - begin + int(part.argmax())} has id {part.max()}, "
                    f"past the vocabulary of {self.vocab_size}; delete {self._files[index].parent} to prepare it again"
                )
            at, index = end, index + 1
        return tokens


def open_split(folder: Path, name: str) -> TokenStream:
    """Raises DataError if a shard is missing or not of the length that meta.json says."""
    meta = Meta.read(folder)
    if name not in meta.splits:
        raise DataError(f"{folder / META}: no split {name!r}; delete {folder} to prepare it again")
    split, dtype = meta.splits[name], token_dtype(meta.vocab_size)
    shards = {folder / shard.file: _map(folder / shard.file, shard.tokens, dtype) for shard in split.shards}
    return TokenStream(shards, meta.vocab_size, split.documents, split.bytes)


def verify(folder: Path) -> None:
    """Read everything and compare checksums. Raises DataError naming the first file that is not what was written."""
    meta = Meta.read(folder)
    expected = {TOKENIZER: meta.tokenizer_sha256}
    expected |= {shard.file: shard.sha256 for split in meta.splits.values() for shard in split.shards}
    for file, sha256 in expected.items():
        if file_sha256(folder / file) != sha256:
            raise DataError(f"{folder / file}: damaged, its checksum differs; delete {folder} to prepare it again")


def file_sha256(file: Path) -> str:
    """Of its bytes; empty if there is no such file."""
    found = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while data := opened.read(VERIFIED_BYTES):
                found.update(data)
    except FileNotFoundError:
        return ""
    return found.hexdigest()


def _map(file: Path, tokens: int, dtype: np.dtype) -> np.ndarray:
    expected = tokens * dtype.itemsize
    size = file.stat().st_size if file.exists() else 0
    if size != expected:
        raise DataError(f"{file}: {size} bytes, {expected} were written; delete {file.parent} to prepare it again")
    return np.memmap(file, dtype=dtype, mode="r")
