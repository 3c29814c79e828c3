"""Ingest a source: tokenize its documents on all cores and write token shards, in order.

If a process is killed, the next one continues from the last record that the killed one wrote.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from moebius.data.chunk import LATER_PART, Chunk
from moebius.data.held_out import document_hash
from moebius.data.long_text import LongText
from moebius.data.packing import WAITING, Piece, Rules
from moebius.data.record import RECORD_FILE, Record
from moebius.data.shards import TOKENIZER, ShardWriter, Split, shard_file, token_dtype
from moebius.data.sources import Reading
from moebius.data.tokenizer import Tokenizer
from moebius.data.workers import Batch, pack_batches

RECORD_INTERVAL_BYTES = 2**28
"""Bytes of text between two records, which one core tokenizes in about a minute."""
BATCH_BYTES = 2**20
"""Number of bytes that a worker gets at once."""
PIECE_BYTES = 2**8
"""Bytes that a piece counts for beyond its own, so that the number of pieces is bounded too."""

Chunks = Iterator[tuple[Chunk, Reading]]


class Ingested(NamedTuple):
    """What was written for a source."""

    splits: dict[str, Split]
    """The splits `train` and `val`."""
    lossy: str = ""
    """The first text that the tokenizer does not give back, and what it becomes, or ""."""


def ingest(
    folder: Path,
    read_chunks: Callable[[], Chunks],
    tokenizer: Tokenizer,
    rules: Rules,
    num_workers: int,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> Ingested:
    """Write a source's documents into the folder, as token shards of both splits.

    `read_chunks` returns an iterator over all of the source, each time that it is called. The
    folder must contain the tokenizer's tokenizer.json. If it also contains the work of an earlier
    call that was killed, this call continues it: the documents that the earlier call recorded are
    read again, to check that they are unchanged, but not tokenized again. All other files are
    removed. `advance` is called with the number of bytes of text that were just tokenized or, if
    an earlier call is continued, read again.

    The bytes of the shards depend only on the documents, the tokenizer and the rules. Raises
    OSError, and whatever `read_chunks` raises.
    """
    record = Record.read(folder, rules.held_out_below)
    if not record.is_on_disk(folder, token_dtype(tokenizer.size).itemsize):
        record = Record(rules.held_out_below)
    while True:
        try:
            return _ingest(folder, read_chunks(), tokenizer, rules, record, num_workers, advance)
        except _OtherDocuments:
            record = Record(rules.held_out_below)


class _OtherDocuments(Exception):
    """The source does not begin with the documents of the record."""


def _ingest(
    folder: Path,
    chunks: Chunks,
    tokenizer: Tokenizer,
    rules: Rules,
    record: Record,
    num_workers: int,
    advance: Callable[[int], None],
) -> Ingested:
    """Continue from `record` and update it. Raises _OtherDocuments if the documents changed."""
    _remove_other_files(folder, record)
    unrecorded_bytes, passed = 0, Record(record.val_fraction)
    num_known, chain = record.batches, record.chain
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(folder, name, tokenizer.size, split=split))
            for name, split in record.splits.items()
        }
        batches = _in_batches(_pieces(chunks, tokenizer), num_known)
        packed_batches = pack_batches(batches, tokenizer, rules, folder / TOKENIZER, num_workers)
        for packed, readings in packed_batches:
            for number, reading in enumerate(readings):
                refused = packed.refused[number]
                if refused.num_documents:
                    reading.refuse(refused.first_reason(), refused.num_documents)
                reading.count(packed.documents[number], packed.num_bytes[number])
            if passed.batches < num_known:
                passed.add(sum(packed.documents), packed.digest)
                if passed.batches == num_known and passed.chain != chain:
                    raise _OtherDocuments
            else:
                record.add(sum(packed.documents), packed.digest, packed.lossy)
                for name, writer in writers.items():
                    documents, num_bytes = packed.split_documents[name], packed.split_bytes[name]
                    for block in packed.blocks(name):
                        writer.append(block, documents, num_bytes)
                        documents = num_bytes = 0
                unrecorded_bytes += sum(packed.num_bytes)
                if unrecorded_bytes >= RECORD_INTERVAL_BYTES:
                    for writer in writers.values():
                        writer.sync()
                    record.write(folder)
                    unrecorded_bytes = 0
            advance(sum(packed.num_bytes))
        if passed.batches < num_known:
            raise _OtherDocuments
        splits = {name: writer.finish() for name, writer in writers.items()}
    (folder / RECORD_FILE).unlink(missing_ok=True)
    for file in folder.glob(f"*{WAITING}"):  # of a process whose owner was killed
        file.unlink()
    return Ingested(splits, record.lossy)


def _remove_other_files(folder: Path, record: Record) -> None:
    """Remove all files but the tokenizer, the record and the shards that the record counts."""
    kept = {TOKENIZER, RECORD_FILE} if record.batches else {TOKENIZER}
    for name, split in record.splits.items():
        kept |= {file for shard in split.shards for file in (shard.file, shard.checksums)}
        kept.add(shard_file(name, len(split.shards)))
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()


def _pieces(chunks: Chunks, tokenizer: Tokenizer) -> Iterator[tuple[Piece, Reading]]:
    """Yield the chunks, each long document of which is cut into pieces."""
    for chunk, reading in chunks:
        if not isinstance(chunk.data, LongText):
            yield Piece(chunk), reading
            continue
        hash_, num_bytes = document_hash(chunk.data)
        for text in tokenizer.pieces(chunk.data):
            yield Piece(chunk._replace(data=text.encode()), hash_, num_bytes), reading
            chunk, num_bytes = chunk._replace(syntax=LATER_PART), 0


def _in_batches(
    pieces: Iterator[tuple[Piece, Reading]], num_known: int
) -> Iterator[tuple[Batch, list[Reading]]]:
    """Yield batches of about `BATCH_BYTES`, the first `num_known` of which are in the shards."""
    batch: list[Piece] = []
    readings: list[Reading] = []
    num_bytes = 0
    for piece, reading in pieces:
        batch.append(piece)
        readings.append(reading)
        num_bytes += piece.chunk.num_bytes + PIECE_BYTES
        if num_bytes >= BATCH_BYTES:
            yield Batch(batch, num_known > 0), readings
            batch, readings, num_bytes, num_known = [], [], 0, num_known - 1
    if batch:
        yield Batch(batch, num_known > 0), readings
