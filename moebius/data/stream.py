"""Reading shards: a split's tokens in order, memory-mapped, each block checked before its first token is used."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moebius.data.shards import BLOCK_BYTES, CHECKSUM, META, TOKENIZER, Meta, Shard, file_sha256, token_dtype
from moebius.errors import DataError

CHECKED_AT_ONCE = 2**30  # bytes of a split that are checked when it is opened: about a second


class Part(NamedTuple):
    """Tokens [start:stop] of a stream: one source, read in proportion to its weight. num_bytes: of the UTF-8 text."""

    start: int
    stop: int
    num_bytes: int
    weight: float = 1.0


class MappedShard:
    """A shard's tokens (n,), and the checksums of its blocks; none: not to be checked."""

    def __init__(self, file: Path, tokens: np.ndarray, checksums: np.ndarray | None = None):
        self.file, self.tokens, self._checksums = file, tokens, checksums
        self._is_unread = np.full(0 if checksums is None else len(checksums), True)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start:stop], stop above start. Raises DataError if the file changed since it was written."""
        size = self.tokens.itemsize
        first, last = start * size // BLOCK_BYTES, (stop * size - 1) // BLOCK_BYTES
        if self._is_unread[first : last + 1].any():
            self.check(first, last + 1)
        return self.tokens[start:stop]

    def check(self, first: int = 0, last: int | None = None) -> None:
        """Compare the checksums of blocks [first:last], by default all, that were not compared before."""
        assert self._checksums is not None
        per_block = BLOCK_BYTES // self.tokens.itemsize
        for block in first + np.flatnonzero(self._is_unread[first:last]):
            if zlib.crc32(self.tokens[block * per_block : (block + 1) * per_block].data) != self._checksums[block]:
                raise DataError(
                    f"{self.file}: damaged between bytes {block * BLOCK_BYTES} and {(block + 1) * BLOCK_BYTES}, a checksum "
                    f"differs; delete {self.file.parent} to prepare it again"
                )
            self._is_unread[block] = False


class TokenStream:
    """Tokens in order over all shards. `num_bytes`: of the UTF-8 text they stand for; `parts`: the sources in it."""

    def __init__(
        self, shards: Sequence[MappedShard], vocab_size: int, num_documents: int, num_bytes: int, parts: Sequence[Part] = ()
    ):
        self.shards, self.vocab_size, self.num_documents, self.num_bytes = list(shards), vocab_size, num_documents, num_bytes
        self._starts = np.cumsum([0, *(len(shard.tokens) for shard in self.shards)])
        self.parts = list(parts) or [Part(0, len(self), num_bytes)]

    @classmethod
    def joined(cls, streams: Sequence["TokenStream"], weights: Sequence[float]) -> "TokenStream":
        """One after the other, each a part with its weight."""
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

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start:stop] as int64.

        Raises IndexError past the end, DataError for a block that is not what was written or an id past the vocabulary.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a stream of {len(self)}")
        tokens = np.empty(stop - start, dtype=np.int64)
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            begin, end = int(self._starts[index]), min(stop, int(self._starts[index + 1]))
            if end > at:
                part = tokens[at - start : end - start]
                part[:] = self.shards[index].read(at - begin, end - begin)
                if part.max() >= self.vocab_size:  # on a GPU it would be an assertion without a place
                    raise self._past_vocabulary(index, at - begin + int(part.argmax()), int(part.max()))
            at, index = end, index + 1
        return tokens

    def _past_vocabulary(self, index: int, place: int, token: int) -> DataError:
        file = self.shards[index].file
        return DataError(
            f"{file}: token {place} has id {token}, past the vocabulary of {self.vocab_size}; "
            f"delete {file.parent} to prepare it again"
        )


def open_split(folder: Path, name: str) -> TokenStream:
    """Raises DataError if a shard is missing, not of the length that meta.json says, or damaged.

    Of up to a gigabyte every block is checked now. Of more, which would take minutes a terabyte at every start, each is
    when a token of it is first read, so damage may come up in the middle of a run, but no damaged token is trained on.
    """
    meta = Meta.read(folder)
    if name not in meta.splits:
        raise DataError(f"{folder / META}: no split {name!r}; delete {folder} to prepare it again")
    split, dtype = meta.splits[name], token_dtype(meta.vocab_size)
    shards = [_map(folder, shard, dtype) for shard in split.shards]
    if split.tokens * dtype.itemsize <= CHECKED_AT_ONCE:
        for shard in shards:
            shard.check()
    return TokenStream(shards, meta.vocab_size, split.documents, split.bytes)


def verify(folder: Path) -> None:
    """Read everything and compare checksums. Raises DataError naming the first place that is not what was written."""
    meta = Meta.read(folder)
    if file_sha256(folder / TOKENIZER) != meta.tokenizer_sha256:
        raise DataError(f"{folder / TOKENIZER}: damaged, its checksum differs; delete {folder} to prepare it again")
    for split in meta.splits.values():
        for shard in split.shards:
            _map(folder, shard, token_dtype(meta.vocab_size)).check()


def _map(folder: Path, shard: Shard, dtype: np.dtype) -> MappedShard:
    file, checksums = folder / shard.file, folder / shard.checksums
    expected = shard.tokens * dtype.itemsize
    size = file.stat().st_size if file.exists() else 0
    if size != expected:
        raise DataError(f"{file}: {size} bytes, {expected} were written; delete {folder} to prepare it again")
    if file_sha256(checksums) != shard.sha256:
        raise DataError(f"{checksums}: damaged, its checksum differs; delete {folder} to prepare it again")
    return MappedShard(file, np.memmap(file, dtype=dtype, mode="r"), np.fromfile(checksums, dtype=CHECKSUM))
