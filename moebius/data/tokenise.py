"""Filling a corpus folder: documents to token shards, side by side, in order, and from where a killed process stopped."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from moebius.data.shards import TOKENIZER, ShardWriter, Split
from moebius.data.sources import Document
from moebius.data.tokenizer import Tokenizer
from moebius.data.workers import encoded

PROGRESS = "progress.json"
PROGRESS_BYTES = 2**28  # of text between two records of it: a minute of one core
BATCH_CHARACTERS = 2**20  # handed to a worker at once
SPLITS = ("train", "val")


class Tokenised(NamedTuple):
    """hashes: the two lowest of the documents' and the highest."""

    splits: dict[str, Split]
    hashes: set[float]


def tokenise(
    folder: Path,
    found: Callable[[], Iterator[Document]],
    tokenizer: Tokenizer,
    val_fraction: float,
    workers: int,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> Tokenised:
    """Write the shards of both splits. The bytes depend on documents, tokenizer and fraction alone.

    If the folder holds what an earlier call wrote before it was killed, that much of the documents is read, to see that they
    are the same, but not tokenised again. The folder holds the tokenizer; other files are removed. Raises OSError.
    """
    progress = Progress.read(folder, val_fraction)
    while True:
        try:
            return _tokenise(folder, found(), tokenizer, progress, workers, advance)
        except _OtherDocuments:
            progress = Progress(val_fraction)


def document_hash(data: bytes) -> float:
    """A number in [0, 1) that depends on the document's bytes alone; below data.val_fraction it is held out."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest()) / 2**48


@dataclass
class Progress:
    """What is written and synced. chain: a hash of the hashes of all documents in it."""

    val_fraction: float
    documents: int = 0
    chain: str = ""
    splits: dict[str, Split] = field(default_factory=lambda: {name: Split() for name in SPLITS})

    @classmethod
    def read(cls, folder: Path, val_fraction: float) -> "Progress":
        """That of a split at the same fraction; none at all if there is no readable record of it."""
        try:
            values = json.loads((folder / PROGRESS).read_bytes())
            splits = {name: Split.of(values["splits"][name]) for name in SPLITS}
            found = cls(values["val_fraction"], values["documents"], values["chain"], splits)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(val_fraction)
        return found if found.val_fraction == val_fraction else cls(val_fraction)

    def write(self, folder: Path) -> None:
        aside = folder / f"{PROGRESS}.partial"
        aside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        aside.replace(folder / PROGRESS)

    def add(self, place: float) -> None:
        self.documents += 1
        self.chain = hashlib.blake2b(f"{self.chain}{place}".encode(), digest_size=8).hexdigest()


class _OtherDocuments(Exception):
    """The source does not begin with the documents that were tokenised."""


class _Piece(NamedTuple):
    """Of a document: all of it, or its first or a later piece. place: the document's hash."""

    text: str
    place: float
    num_bytes: int
    begins: bool


def _tokenise(
    folder: Path,
    found: Iterator[Document],
    tokenizer: Tokenizer,
    progress: Progress,
    workers: int,
    advance: Callable[[int], None],
) -> Tokenised:
    _clear(folder, progress)
    hashes = _Extremes()
    _pass_over(found, progress, hashes, advance)
    unrecorded = 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(folder, name, tokenizer.size, tokenizer.end_of_text, split=split))
            for name, split in progress.splits.items()
        }
        batches = ((([piece.text for piece in batch]), batch) for batch in _in_batches(_pieces(found, tokenizer)))
        for all_ids, batch in encoded(batches, tokenizer, folder / TOKENIZER, workers):
            for ids, piece in zip(all_ids, batch, strict=True):
                if piece.begins:
                    if unrecorded >= PROGRESS_BYTES:
                        for writer in writers.values():
                            writer.sync()
                        progress.write(folder)
                        unrecorded = 0
                    progress.add(piece.place)
                    hashes.add(piece.place)
                writers["val" if piece.place < progress.val_fraction else "train"].append(ids, piece.num_bytes, piece.begins)
                unrecorded += piece.num_bytes
                advance(piece.num_bytes)
        splits = {name: writer.finish() for name, writer in writers.items()}
    (folder / PROGRESS).unlink(missing_ok=True)
    return Tokenised(splits, hashes.found)


def _clear(folder: Path, progress: Progress) -> None:
    keep = {TOKENIZER, PROGRESS} if progress.documents else {TOKENIZER}
    for name, split in progress.splits.items():
        keep |= {file for shard in split.shards for file in (shard.file, shard.checksums)}
        keep.add(f"{name}-{len(split.shards):05d}.bin")
    for file in folder.iterdir():
        if file.name not in keep:
            file.unlink()


def _pass_over(found: Iterator[Document], progress: Progress, hashes: "_Extremes", advance: Callable[[int], None]) -> None:
    """Read the documents that are already tokenised. Raises _OtherDocuments."""
    read = Progress(progress.val_fraction)
    while read.documents < progress.documents:
        document = next(found, None)
        if document is None:
            raise _OtherDocuments
        place, num_bytes = _hash_and_size(document.text)
        read.add(place)
        hashes.add(place)
        advance(num_bytes)
    if read.chain != progress.chain:
        raise _OtherDocuments


def _pieces(found: Iterator[Document], tokenizer: Tokenizer) -> Iterator[_Piece]:
    for document in found:
        place, num_bytes = _hash_and_size(document.text)
        for number, text in enumerate(tokenizer.pieces(document.text)):
            yield _Piece(text, place, 0 if number else num_bytes, begins=number == 0)


def _in_batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash_and_size(text: str) -> tuple[float, int]:
    data = text.encode()
    return document_hash(data), len(data)


class _Extremes:
    def __init__(self) -> None:
        self.found: set[float] = set()

    def add(self, place: float) -> None:
        ordered = sorted(self.found | {place})
        self.found = {*ordered[:2], *ordered[-1:]}
