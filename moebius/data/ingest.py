"""Ingest a source: tokenize its documents on all cores and write token shards, in order.

If a process is killed, the next one continues from the last record that the killed one wrote.
"""

import hashlib
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from moebius.data.record import RECORD_FILE, Record
from moebius.data.shards import TOKENIZER, ShardWriter, Split, shard_file, token_dtype
from moebius.data.sources import Document
from moebius.data.tokenizer import Tokenizer
from moebius.data.workers import encode_batches

RECORD_INTERVAL_BYTES = 2**28
"""Bytes of text between two records, which one core tokenizes in about a minute."""
LOWEST_HASHES = 160
"""How many of the lowest hashes are remembered. A source with fewer different documents is small,
and holds out a larger share of them."""
BATCH_CHARACTERS = 2**20
"""Number of characters that a worker gets at once."""


class Ingested(NamedTuple):
    """What was written for a source."""

    splits: dict[str, Split]
    """The splits `train` and `val`."""
    lowest_hashes: list[float]
    """The lowest of the documents' distinct hashes in order, at most `LOWEST_HASHES` of them."""
    highest_hash: float
    """The highest of the documents' hashes, or 0 if there are no documents."""
    lossy: str = ""
    """The first text that the tokenizer does not give back, and what it becomes, or ""."""


def ingest(
    folder: Path,
    read_documents: Callable[[], Iterator[Document]],
    tokenizer: Tokenizer,
    val_fraction: float,
    num_workers: int,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> Ingested:
    """Write a source's documents into the folder, as token shards of both splits.

    `read_documents` returns an iterator over all documents of the source, each time that it is
    called. The folder must contain the tokenizer's tokenizer.json. If it also contains the work of
    an earlier call that was killed, this call continues it: the documents that the earlier call
    recorded are read again, to check that they are unchanged, but not tokenized again. All other
    files are removed. `advance` is called with the number of bytes of text that were just
    tokenized or, if an earlier call is continued, read again.

    The bytes of the shards depend only on the documents, the tokenizer and `val_fraction`. Raises
    OSError, and whatever `read_documents` raises.
    """
    record = Record.read(folder, val_fraction)
    if not record.is_on_disk(folder, token_dtype(tokenizer.size).itemsize):
        record = Record(val_fraction)
    while True:
        try:
            return _ingest(folder, read_documents(), tokenizer, record, num_workers, advance)
        except _OtherDocuments:
            record = Record(val_fraction)


def document_hash(data: bytes) -> float:
    """Return a number in [0, 1) that depends only on the document's UTF-8 bytes.

    Documents whose number is below data.val_fraction are held out.
    """
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest()) / 2**48


class _OtherDocuments(Exception):
    """The source does not begin with the documents of the record."""


class _Piece(NamedTuple):
    """A document or a piece of a long one."""

    text: str
    hash: float
    """The hash of the whole document."""
    num_bytes: int
    """Bytes of the whole document for its first piece, 0 for the others."""
    begins: bool
    """Whether the piece is the first of its document."""


def _ingest(
    folder: Path,
    documents: Iterator[Document],
    tokenizer: Tokenizer,
    record: Record,
    num_workers: int,
    advance: Callable[[int], None],
) -> Ingested:
    """Continue from `record` and update it. Raises _OtherDocuments if the documents changed."""
    _remove_other_files(folder, record)
    hashes = _Hashes()
    _pass_over(documents, record, hashes, advance)
    unrecorded_bytes = 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                ShardWriter(folder, name, tokenizer.size, tokenizer.end_of_text, split=split)
            )
            for name, split in record.splits.items()
        }
        batches = (
            ([piece.text for piece in batch], batch)
            for batch in _in_batches(_pieces(documents, tokenizer))
        )
        encoded = encode_batches(batches, tokenizer, folder / TOKENIZER, num_workers)
        for ids_of_pieces, batch in encoded:
            record.lossy = record.lossy or tokenizer.first_loss(
                [piece.text for piece in batch], ids_of_pieces
            )
            for ids, piece in zip(ids_of_pieces, batch, strict=True):
                if piece.begins:
                    if unrecorded_bytes >= RECORD_INTERVAL_BYTES:
                        for writer in writers.values():
                            writer.sync()
                        record.write(folder)
                        unrecorded_bytes = 0
                    record.add(piece.hash)
                    hashes.add(piece.hash)
                split = "val" if piece.hash < record.val_fraction else "train"
                writers[split].append(ids, piece.num_bytes, piece.begins)
                unrecorded_bytes += piece.num_bytes
                advance(piece.num_bytes)
        splits = {name: writer.finish() for name, writer in writers.items()}
    (folder / RECORD_FILE).unlink(missing_ok=True)
    return Ingested(splits, hashes.lowest, hashes.highest, record.lossy)


def _remove_other_files(folder: Path, record: Record) -> None:
    """Remove all files but the tokenizer, the record and the shards that the record counts."""
    kept = {TOKENIZER, RECORD_FILE} if record.documents else {TOKENIZER}
    for name, split in record.splits.items():
        kept |= {file for shard in split.shards for file in (shard.file, shard.checksums)}
        kept.add(shard_file(name, len(split.shards)))
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()


def _pass_over(
    documents: Iterator[Document],
    record: Record,
    hashes: "_Hashes",
    advance: Callable[[int], None],
) -> None:
    """Read the documents that the record counts. Raises _OtherDocuments if they differ."""
    passed = Record(record.val_fraction)
    while passed.documents < record.documents:
        document = next(documents, None)
        if document is None:
            raise _OtherDocuments
        hash_, num_bytes = _hash_and_size(document.text)
        passed.add(hash_)
        hashes.add(hash_)
        advance(num_bytes)
    if passed.chain != record.chain:
        raise _OtherDocuments


def _pieces(documents: Iterator[Document], tokenizer: Tokenizer) -> Iterator[_Piece]:
    for document in documents:
        hash_, num_bytes = _hash_and_size(document.text)
        for number, text in enumerate(tokenizer.pieces(document.text)):
            yield _Piece(text, hash_, 0 if number else num_bytes, begins=number == 0)


def _in_batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Yield lists of pieces, each complete once it has `BATCH_CHARACTERS`."""
    batch: list[_Piece] = []
    num_characters = 0
    for piece in pieces:
        batch.append(piece)
        num_characters += len(piece.text)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _hash_and_size(text: str) -> tuple[float, int]:
    data = text.encode()
    return document_hash(data), len(data)


class _Hashes:
    """The lowest of the distinct hashes that were added, in order, and the highest."""

    def __init__(self) -> None:
        self.lowest: list[float] = []
        self.highest = 0.0

    def add(self, hash_: float) -> None:
        self.highest = max(self.highest, hash_)
        if len(self.lowest) == LOWEST_HASHES and hash_ >= self.lowest[-1]:
            return
        if hash_ not in self.lowest:
            insort(self.lowest, hash_)
            del self.lowest[LOWEST_HASHES:]
