"""Read token shards as one stream of tokens.

Shards are memory-mapped, and a block's checksum is verified before any of its tokens is used.
"""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moebius.data.shards import (
    BLOCK_BYTES,
    CHECKSUM,
    META,
    TOKENIZER,
    Meta,
    Shard,
    file_sha256,
    token_dtype,
)
from moebius.errors import DataError

CHECKED_AT_START = 2**30
"""Most bytes of a corpus, over all its sources and splits, that are checked when it is opened,
which takes about a second."""


class Part(NamedTuple):
    """The tokens of one source in a stream."""

    start: int
    """Position of the source's first token in the stream."""
    stop: int
    """Position after the source's last token."""
    num_bytes: int
    """Bytes of UTF-8 text that the tokens stand for."""
    weight: float = 1.0
    """Share of the sequences that is taken from the source, relative to the other weights."""


class MappedShard:
    """The tokens (n,) of a shard, each block of which is checked before its first use.

    `checksums` has the CRC-32 of each block; without it nothing is checked. `file` is named in
    error messages.
    """

    def __init__(self, file: Path, tokens: np.ndarray, checksums: np.ndarray | None = None):
        self.file = file
        self.tokens = tokens
        self._checksums = checksums
        self._is_unchecked = np.full(0 if checksums is None else len(checksums), True)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start:stop], where stop is above start.

        Raises DataError if the file's contents are not what was written.
        """
        size = self.tokens.itemsize
        first, last = start * size // BLOCK_BYTES, (stop * size - 1) // BLOCK_BYTES
        if self._is_unchecked[first : last + 1].any():
            self.check(first, last + 1)
        return self.tokens[start:stop]

    def check(self, first: int = 0, last: int | None = None) -> None:
        """Verify the checksums of those blocks in [first:last] that have not been verified yet.

        By default these are all blocks. Raises DataError if a checksum differs.
        """
        assert self._checksums is not None
        per_block = BLOCK_BYTES // self.tokens.itemsize
        for block in first + np.flatnonzero(self._is_unchecked[first:last]):
            data = self.tokens[block * per_block : (block + 1) * per_block].data
            if zlib.crc32(data) != self._checksums[block]:
                raise DataError(
                    f"{self.file}: damaged between bytes {block * BLOCK_BYTES} and "
                    f"{(block + 1) * BLOCK_BYTES}, where the checksum differs; "
                    f"delete {self.file.parent} to prepare it again"
                )
            self._is_unchecked[block] = False


class TokenStream:
    """The tokens of one or more shards, in order; `len` is their number.

    `num_documents` and `num_bytes` (of UTF-8 text) are the size of the text that the tokens stand
    for. `parts` are the sources in the stream; by default it is one source.
    """

    def __init__(
        self,
        shards: Sequence[MappedShard],
        vocab_size: int,
        num_documents: int,
        num_bytes: int,
        parts: Sequence[Part] = (),
    ):
        self.shards = list(shards)
        self.vocab_size = vocab_size
        self.num_documents = num_documents
        self.num_bytes = num_bytes
        self._starts = np.cumsum([0, *(len(shard.tokens) for shard in self.shards)])
        self.parts = list(parts) or [Part(0, len(self), num_bytes)]

    @classmethod
    def joined(cls, streams: Sequence["TokenStream"], weights: Sequence[float]) -> "TokenStream":
        """Return the concatenated streams, each of which becomes a part with its weight."""
        starts = np.cumsum([0, *map(len, streams)]).tolist()
        parts = [
            Part(start, start + len(stream), stream.num_bytes, weight)
            for start, stream, weight in zip(starts[:-1], streams, weights, strict=True)
        ]
        return cls(
            [shard for stream in streams for shard in stream.shards],
            max(stream.vocab_size for stream in streams),
            sum(stream.num_documents for stream in streams),
            sum(stream.num_bytes for stream in streams),
            parts,
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_stored_bytes(self) -> int:
        """The size of the shards."""
        return sum(shard.tokens.nbytes for shard in self.shards)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start:stop] as int64.

        Raises IndexError outside the stream, and DataError for a damaged block or an id outside
        the vocabulary.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a stream of {len(self)}")
        tokens = np.empty(stop - start, dtype=np.int64)
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        position = start
        while position < stop:
            shard_start = int(self._starts[index])
            end = min(stop, int(self._starts[index + 1]))
            if end > position:
                part = tokens[position - start : end - start]
                part[:] = self.shards[index].read(position - shard_start, end - shard_start)
                # A GPU would fail with an assertion that does not say where the id is from.
                if part.max() >= self.vocab_size:
                    place = position - shard_start + int(part.argmax())
                    raise self._outside_vocabulary(index, place, int(part.max()))
            position, index = end, index + 1
        return tokens

    def _outside_vocabulary(self, index: int, place: int, token: int) -> DataError:
        file = self.shards[index].file
        return DataError(
            f"{file}: token {place} has id {token}, outside the vocabulary of {self.vocab_size}; "
            f"delete {file.parent} to prepare it again"
        )


def open_split(folder: Path, name: str, meta: Meta | None = None) -> TokenStream:
    """Return the stream of a prepared source's split, `train` or `val`.

    `meta` is what the folder's meta.json says, if that has been read. Raises DataError if a shard
    is missing or is not as long as meta.json says, or if the checksums are damaged.
    """
    meta = meta or Meta.read(folder)
    if name not in meta.splits:
        raise DataError(f"{folder / META}: no split {name!r}; delete {folder} to prepare it again")
    split, dtype = meta.splits[name], token_dtype(meta.vocab_size)
    shards = [_map(folder, shard, dtype) for shard in split.shards]
    return TokenStream(shards, meta.vocab_size, split.documents, split.bytes)


def check_at_start(streams: Iterable[TokenStream]) -> None:
    """Check the smallest streams as a whole, as many as `CHECKED_AT_START` allows.

    To check all blocks of a large corpus would take minutes per terabyte at every start, so the
    other ones are checked when they are first read: damage may show up in the middle of a run, but
    no damaged token is trained on. Raises DataError, which names the damaged place.
    """
    left = CHECKED_AT_START
    for stream in sorted(streams, key=lambda stream: stream.num_stored_bytes):
        left -= stream.num_stored_bytes
        if left < 0:
            return
        for shard in stream.shards:
            shard.check()


def verify(folder: Path) -> None:
    """Read all files of a prepared source and verify their checksums.

    Raises DataError, which names the first damaged place.
    """
    meta = Meta.read(folder)
    if file_sha256(folder / TOKENIZER) != meta.tokenizer_sha256:
        raise DataError(
            f"{folder / TOKENIZER}: damaged, its checksum differs; "
            f"delete {folder} to prepare it again"
        )
    for split in meta.splits.values():
        for shard in split.shards:
            _map(folder, shard, token_dtype(meta.vocab_size)).check()


def _map(folder: Path, shard: Shard, dtype: np.dtype) -> MappedShard:
    file, checksums = folder / shard.file, folder / shard.checksums
    expected = shard.tokens * dtype.itemsize
    size = file.stat().st_size if file.exists() else 0
    if size != expected:
        raise DataError(
            f"{file}: {size} bytes, but {expected} were written; "
            f"delete {folder} to prepare it again"
        )
    if file_sha256(checksums) != shard.sha256:
        raise DataError(
            f"{checksums}: damaged, its checksum differs; delete {folder} to prepare it again"
        )
    return MappedShard(
        file, np.memmap(file, dtype=dtype, mode="r"), np.fromfile(checksums, dtype=CHECKSUM)
    )
