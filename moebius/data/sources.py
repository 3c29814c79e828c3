"""Read documents from their sources one at a time, in the same order on any machine."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from moebius.config import DataConfig
from moebius.data.chunk import (
    DOCUMENT,
    LINES,
    NOT_TEXT,
    REFUSAL,
    TEXT_PIECE,
    WHOLE_FILE,
    Chunk,
    FilePart,
    Origin,
    unreadable,
)
from moebius.data.formats import ARROW, NO_STATE, PARQUET, TEXT, SourceFile
from moebius.data.hub import hub_rows
from moebius.data.inventory import STDLIB, Inventory, inventory, on_hub, refuse_document
from moebius.data.line_rows import json_line_chunks, json_line_texts
from moebius.data.long_text import LONG_BYTES, LongText, Text, parts_of
from moebius.data.row_syntax import CSV, JSON, JSON_LINES
from moebius.data.rows import csv_rows, json_objects
from moebius.data.tables import arrow_rows, parquet_rows
from moebius.data.tally import Amount, Tally
from moebius.data.text_files import NotText, Refuse, piece_text, text_chunks
from moebius.errors import DataError

Rows = Callable[[SourceFile, str, Refuse], Iterator[Chunk | tuple[Text, Origin]]]
READERS: dict[str, Rows] = {
    JSON_LINES: json_line_chunks,
    JSON: json_objects,
    CSV: csv_rows,
    PARQUET: parquet_rows,
    ARROW: arrow_rows,
}
"""Functions that yield the text and the origin of each row of a file, or several rows that are not
taken apart, by kind of file."""
SMALL_FILE = 2**20
"""Largest number of bytes of a file that is read as a whole by the process that tokenizes it, even
if it is the only one that cannot be read in parts. Such a file is not worth more processes."""
LARGEST_WHOLE_FILE = 2**28
"""Largest number of bytes of a file that is read as a whole by such a process if there are
`FEWEST_WHOLE_FILES`, enough for many processes."""
FEWEST_WHOLE_FILES = 16


class Document(NamedTuple):
    """A text and where it comes from."""

    text: str
    origin: str
    """The file, and the line, row or byte offset if the file has several documents."""


def documents(
    config: DataConfig, tally: Tally | None = None, listed: "Inventory | None" = None
) -> Iterator[Document]:
    """Yield every document that is not empty, for a configuration with a single source.

    `listed` is the inventory of its files, if there is one already. If a document cannot be read,
    data.errors decides: either DataError is raised, naming the file and the place in it, or the
    document is counted in `tally`, like all that is read and all files that are not. Raises
    StorageError if the system does not let a file be read.
    """
    for text, origin in texts(config, tally, listed):
        yield Document(text if isinstance(text, str) else "".join(text), str(origin))


def texts(
    config: DataConfig, tally: Tally | None = None, listed: "Inventory | None" = None
) -> Iterator[tuple[Text, Origin]]:
    """Yield the text and the origin of each document like `documents`, but long texts in parts."""
    rules = ReadingRules.of(config)
    tally = Tally() if tally is None else tally
    for chunk, reading in chunks(config, tally, listed):
        if tally.first:
            chunk = chunk.uncounted()
        for text, origin in texts_in(chunk, rules, reading.refuse):
            reading.count(1, sum(len(part.encode()) for part in parts_of(text)))
            yield text, origin


def chunks(
    config: DataConfig, tally: Tally, listed: "Inventory | None" = None
) -> Iterator[tuple[Chunk, "Reading"]]:
    """Yield everything in a single source, with what is known of the file that it is from.

    Files are not read here as far as they can be read in parts, or are small, or many: then the
    chunks say where the text is. The documents are taken apart by `texts_in`, which any process
    can do, and counted by the caller. Documents that cannot be read are reported to
    `Reading.refuse` by the caller too, so that they come in order. Raises StorageError if the
    system does not let a file be read.
    """
    listed = listed or inventory(config)
    tally.include(listed.tally)
    rules = ReadingRules.of(config)
    if on_hub(config):
        reading = Reading(config, tally, "", tally.read.setdefault(config.source, Amount()))
        rows = partial(hub_rows, config.source, config.text_field)
        yield from ((chunk, reading) for chunk in _in_order(rows, rules.ends_at_refusal))
        return
    largest_whole = _largest_whole(listed.files)
    for file in listed.files:
        amount = tally.read.setdefault(file.format.label, Amount())
        amount.files += 1
        reading = Reading(config, tally, file.format.kind, amount)
        if not _has_parts(file) and 0 < file.size <= largest_whole:
            whole = FilePart(file.location, 0, file.size, file.format)
            yield Chunk(WHOLE_FILE, whole, file.name), reading
            continue
        for chunk in _chunks_in(file, rules, is_whole_source=len(listed.files) == 1):
            yield chunk, reading


def _has_parts(file: SourceFile) -> bool:
    """Return whether parts of a file can be read without what comes before them."""
    return file.format.kind in (TEXT, JSON_LINES) and not file.format.compressions


def _largest_whole(files: list[SourceFile]) -> int:
    """Return the size up to which those files are read as a whole that have no parts.

    It depends on the files alone, and not on the number of processes, so that any number of them
    can continue the work of any other number.
    """
    if len(files) == 1:
        return 0
    sizes = [file.size for file in files if not _has_parts(file)]
    num_large = sum(SMALL_FILE < size <= LARGEST_WHOLE_FILE for size in sizes)
    return LARGEST_WHOLE_FILE if num_large >= FEWEST_WHOLE_FILES else SMALL_FILE


@dataclass(frozen=True)
class ReadingRules:
    """The settings that decide how the documents in a chunk are read."""

    text_field: str = "text"
    """The field that holds the text in rows."""
    keeps_mark: bool = False
    """Whether a byte order mark at the start of a text file counts as text.

    Two tests of the standard library begin with one on purpose. It stays, so that the tokens of
    every run on this source are the same as ever.
    """
    ends_at_refusal: bool = False
    """Whether the first document that cannot be read is an error."""

    @classmethod
    def of(cls, config: DataConfig) -> "ReadingRules":
        """Return the rules for a single source."""
        is_stdlib = config.source == STDLIB
        return cls(config.text_field, is_stdlib, config.errors == "stop" and not is_stdlib)


def texts_in(chunk: Chunk, rules: ReadingRules, refuse: Refuse) -> Iterator[tuple[Text, Origin]]:
    """Yield the text and the origin of each document in a chunk that is not empty.

    Raises StorageError if the system does not let a file be read.
    """
    if chunk.syntax in (REFUSAL, NOT_TEXT):
        for _ in range(chunk.num_refused):
            refuse(NotText(chunk.origin) if chunk.syntax == NOT_TEXT else chunk.origin)
        return
    if chunk.syntax == WHOLE_FILE:
        assert isinstance(chunk.data, FilePart)
        part = chunk.data
        file = SourceFile(part.location, chunk.origin, part.format, NO_STATE)
        for inner in _chunks_in(file, rules):
            yield from texts_in(inner, rules, refuse)
        return
    found: Iterator[tuple[Text, Origin]]
    if chunk.syntax == TEXT_PIECE:
        found = piece_text(chunk, rules.keeps_mark, refuse)
    elif chunk.syntax == LINES:
        found = json_line_texts(chunk, rules.text_field, refuse)
    else:
        text = chunk.data if isinstance(chunk.data, LongText) else chunk.raw.decode()
        found = iter([(text, chunk.origin)])
    yield from ((text, origin) for text, origin in found if text)


@dataclass(frozen=True)
class Reading:
    """A file that is being read."""

    config: DataConfig
    tally: Tally
    """Counts what is read from the source and what is not."""
    kind: str
    """The kind of file."""
    amount: Amount
    """Counts what is read of the files of this kind."""

    def count(self, num_documents: int, num_bytes: int) -> None:
        """Count documents that were read."""
        self.amount.documents += num_documents
        self.amount.bytes += num_bytes

    def refuse(self, reason: str, count: int = 1) -> None:
        """Count documents that cannot be read, or raise DataError, as data.errors says.

        `reason` is that of the first of them.
        """
        # A few tests of the standard library are files in other encodings on purpose. They belong
        # to Python: the user cannot fix them and learns nothing from a message about them.
        if self.config.source != STDLIB:
            refuse_document(reason, self.config, self.tally, self.kind, count)


_Read = Callable[[Refuse], Iterator[Chunk | tuple[Text, Origin]]]
"""A reader of one file."""


class _Refused(DataError):
    """Ends a reader at the first document that it refuses, whose reason is reported later."""


def _chunks_in(
    file: SourceFile, rules: ReadingRules, is_whole_source: bool = False
) -> Iterator[Chunk]:
    """Yield the contents of a file. Raises StorageError."""
    if reader := READERS.get(file.format.kind):
        read: _Read = partial(reader, file, rules.text_field)
    else:
        read = partial(text_chunks, file, is_whole_source=is_whole_source)
    try:
        yield from _in_order(read, rules.ends_at_refusal)
    except OSError as error:
        raise unreadable(file.location, error) from None


def _in_order(read: _Read, ends_at_refusal: bool) -> Iterator[Chunk]:
    """Yield what a reader yields, and what it refuses, in order.

    What it refuses without a document in between is counted, and only the first reason is kept.
    """
    refused: list[Chunk] = []

    def refuse(reason: str) -> None:
        if refused:
            refused[0] = refused[0]._replace(num_refused=refused[0].num_refused + 1)
        else:
            syntax = NOT_TEXT if isinstance(reason, NotText) else REFUSAL
            refused.append(Chunk(syntax, b"", str(reason)))
        if ends_at_refusal:  # a row may be the first of millions without the field
            raise _Refused

    with suppress(_Refused):
        for found in read(refuse):
            yield from refused
            refused.clear()
            if not isinstance(found, Chunk):
                text, origin = found
                found = Chunk(DOCUMENT, _data(text), str(origin))
            yield found
    yield from refused


def _data(text: Text) -> bytes | LongText:
    """Return the UTF-8 of a text unless it is long."""
    if isinstance(text, str) and len(text) <= LONG_BYTES:
        return text.encode()
    return LongText(lambda: parts_of(text))
