"""Read documents from their sources one at a time, in the same order on any machine."""

import glob
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from moebius.config import DataConfig
from moebius.config.paths import expanded
from moebius.config.printable import printable_line
from moebius.data.chunk import DOCUMENT, LINES, NOT_TEXT, REFUSAL, TEXT_PIECE, Chunk
from moebius.data.file_hashes import Remembered
from moebius.data.formats import (
    ARROW,
    PARQUET,
    Format,
    SourceFile,
    State,
    identify,
    state_of,
)
from moebius.data.hub import HUB_NAME, HUGGING_FACE, hub_rows, local_data_set
from moebius.data.listing import fixed_part, folder_files, glob_files
from moebius.data.long_text import LONG_BYTES, LongText, Text, parts_of
from moebius.data.remote import download, is_remote
from moebius.data.row_syntax import CSV, JSON, JSON_LINES
from moebius.data.rows import csv_rows, json_line_chunks, json_line_texts, json_objects
from moebius.data.saved_sets import SavedSets
from moebius.data.tables import arrow_rows, parquet_rows
from moebius.data.tally import SAME_FILE, Amount, Tally
from moebius.data.text_files import NotText, Refuse, piece_text, text_chunks
from moebius.errors import DataError, StorageError

STDLIB = "python-stdlib"
NOT_STDLIB = ("site-packages", "dist-packages", "__pycache__")
"""Folders inside the standard library's folder that do not belong to it."""

Rows = Callable[[SourceFile, str, Refuse], Iterator[Chunk | tuple[Text, str]]]
READERS: dict[str, Rows] = {
    JSON_LINES: json_line_chunks,
    JSON: json_objects,
    CSV: csv_rows,
    PARQUET: parquet_rows,
    ARROW: arrow_rows,
}
"""Functions that yield the text and the origin of each row of a file, or several rows that are not
taken apart, by kind of file."""


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
        yield Document(text if isinstance(text, str) else "".join(text), origin)


def texts(
    config: DataConfig, tally: Tally | None = None, listed: "Inventory | None" = None
) -> Iterator[tuple[Text, str]]:
    """Yield the text and the origin of each document like `documents`, but long texts in parts."""
    for chunk, reading in chunks(config, Tally() if tally is None else tally, listed):
        for text, origin in texts_in(chunk, config.text_field, reading.keeps_mark, reading.refuse):
            reading.count(1, sum(len(part.encode()) for part in parts_of(text)))
            yield text, origin


def chunks(
    config: DataConfig, tally: Tally, listed: "Inventory | None" = None
) -> Iterator[tuple[Chunk, "Reading"]]:
    """Yield everything in a single source, with what is known of the file that it is from.

    The documents are taken apart by `texts_in`, which any process can do, and counted by the
    caller. Documents that cannot be read are reported to `Reading.refuse` by the caller too, so
    that they come in order. Raises StorageError if the system does not let a file be read.
    """
    listed = listed or inventory(config)
    tally.include(listed.tally)
    if on_hub(config):
        reading = Reading(config, tally, "", tally.read.setdefault(config.source, Amount()))
        yield from _in_order(reading, partial(hub_rows, config.source, config.text_field))
        return
    for file in listed.files:
        amount = tally.read.setdefault(file.format.label, Amount())
        amount.files += 1
        reading = Reading(config, tally, file.format.kind, amount)
        try:
            if reader := READERS.get(file.format.kind):
                yield from _in_order(reading, partial(reader, file, config.text_field))
            else:
                is_whole_source = len(listed.files) == 1
                read = partial(text_chunks, file, is_whole_source=is_whole_source)
                yield from _in_order(reading, read)
        except OSError as error:
            raise StorageError(f"{file.path}: {error.strerror or error}") from None


def texts_in(
    chunk: Chunk, field: str, keeps_mark: bool, refuse: Refuse
) -> Iterator[tuple[Text, str]]:
    """Yield the text and the origin of each document in a chunk that is not empty."""
    if chunk.syntax in (REFUSAL, NOT_TEXT):
        return refuse(NotText(chunk.origin) if chunk.syntax == NOT_TEXT else chunk.origin)
    if chunk.syntax == TEXT_PIECE:
        found: Iterator[tuple[Text, str]] = piece_text(chunk, keeps_mark, refuse)
    elif chunk.syntax == LINES:
        found = json_line_texts(chunk, field, refuse)
    else:
        text = chunk.data if isinstance(chunk.data, LongText) else chunk.data.decode()
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

    @property
    def keeps_mark(self) -> bool:
        """Whether a byte order mark counts as text.

        Two tests of the standard library begin with one on purpose. It stays, so that the tokens
        of every run on this source are the same as ever.
        """
        return self.config.source == STDLIB

    @property
    def ends_at_refusal(self) -> bool:
        """Whether `refuse` raises DataError."""
        return self.config.errors == "stop" and self.config.source != STDLIB

    def count(self, num_documents: int, num_bytes: int) -> None:
        """Count documents that were read."""
        self.amount.documents += num_documents
        self.amount.bytes += num_bytes

    def refuse(self, reason: str) -> None:
        """Count a document that cannot be read, or raise DataError, as data.errors says."""
        # A few tests of the standard library are files in other encodings on purpose. They belong
        # to Python: the user cannot fix them and learns nothing from a message about them.
        if self.config.source != STDLIB:
            _refuse(reason, self.config, self.tally, self.kind)


@dataclass
class Inventory:
    """The files of a source."""

    files: list[SourceFile]
    """The files that are read, in the order in which they are."""
    tally: Tally
    """The files that are not, with the reasons."""
    remembered: Remembered
    """What is remembered of the files."""
    others: list[SourceFile]
    """Files that are not read because of what they are, or that are only other names of files."""
    hashes: list[str] | None = None
    """The SHA-256 of the contents of each file that is read, once that was asked for."""

    def content_hashes(self) -> list[str]:
        """Return the SHA-256 of the contents of each file that is read. Raises OSError."""
        if self.hashes is None:
            self.hashes = self.remembered.content_hashes(self.files, self.others)
        return self.hashes


def inventory(config: DataConfig, known: Inventory | None = None) -> Inventory:
    """Return the local files of a single source.

    - A folder stands for all files below it, whatever their suffix, so that a folder of source
      code works. Hidden files (.git, .venv) are left out. Links are followed once.
    - A glob stands for all files that match it, and the path of a single file for that file.
    - A URL is downloaded into the cache unless that has been done before, and the copies are
      returned.
    - A dataset on the Hugging Face hub has no local files.

    Files that hold no text that can be read are counted; if the source is only one such file, that
    is an error. So is a file that the system does not let be read, unless data.errors skips it.
    A file is opened to find out what it is, unless that is remembered or it is read according to
    `known`, an earlier inventory. Raises DataError if there are no files, StorageError if they
    cannot be listed or downloaded, and ConfigError for a URL of an unknown kind.
    """
    tally = Tally()
    formats = {file.location: file.format for file in known.files} if known else {}
    as_text = config.format == "text" or config.source == STDLIB
    remembered = Remembered(expanded(config.cache), config.source, as_text)
    listed = Inventory([], tally, remembered, [])
    try:
        named, saved_sets = _candidates(config, tally)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror or error}") from None
    is_on_hub = on_hub(config)
    for name, path in named.items():
        if not is_on_hub and (reason := saved_sets.reason(name)):
            tally.pass_over(reason, name)
            continue
        try:
            state = state_of(path)
            # What a file of the hub is, `datasets` decides.
            format_ = Format("") if is_on_hub else formats.get(path)
            format_ = format_ or remembered.format(path, state)
            format_ = format_ or identify(Path(path), name, as_text)
        except OSError as error:
            _leave_out(name, error, config, tally)
            continue
        file = SourceFile(path, name, format_, state)
        if is_on_hub or format_.kind:
            listed.files.append(file)
            continue
        listed.others.append(file)
        if format_.is_damaged:
            _refuse(f"{name}: {format_.reason}", config, tally, "")
        elif config.source != STDLIB:
            tally.pass_over(format_.reason, name)
    if config.source != STDLIB:
        _leave_out_links(listed)
    if not listed.files and len(named) == 1 and tally.passed_over:
        raise DataError(f"data.source={config.source!r}: no text in it: {tally.reasons()}")
    return listed


def _leave_out_links(listed: Inventory) -> None:
    """Leave out links to files that are read under their own names, or under another link's.

    The cache of the Hugging Face hub, for example, is a folder of files and one of links to them.
    Two hard links count as two files, since no copy of them could be told from one of two files.
    """
    names: dict[State, list[SourceFile]] = {}
    for file in listed.files:
        names.setdefault(file.state, []).append(file)
    left_out = set[str]()
    for same in names.values():
        if len(same) > 1:
            links = [file.location for file in same if file.path.is_symlink()]
            left_out.update(links if len(links) < len(same) else links[1:])
    if left_out:
        links = [file for file in listed.files if file.location in left_out]
        listed.files = [file for file in listed.files if file.location not in left_out]
        listed.others += links
        listed.tally.pass_over(SAME_FILE, links[0].name, len(links))


def _leave_out(name: str, error: OSError, config: DataConfig, tally: Tally) -> None:
    """Count a file that the system does not let be read, or raise StorageError."""
    reason = printable_line(f"{name}: {error.strerror or error}")
    if isinstance(error, FileNotFoundError):
        raise StorageError(f"{reason}; it was there when the files were listed")
    if config.errors == "skip":
        return tally.add(reason)
    raise StorageError(
        f"{reason}; make it readable, or leave out such files with --data.errors skip"
    )


def root_of(source: str) -> str:
    """Return the folder below which a single source has its files."""
    path = local_data_set(source) or expanded(source)
    return str(path.parent) if path.is_file() else fixed_part(str(path))


def on_hub(config: DataConfig) -> bool:
    """Return whether the source is read with `datasets`, and not as files."""
    return (
        config.source.startswith(HUGGING_FACE)
        and not is_remote(config.source)
        and local_data_set(config.source) is None
    )


def _candidates(config: DataConfig, tally: Tally) -> tuple[dict[str, str], SavedSets]:
    """Return all files that a source names, by name, and what is known of saved data sets."""
    source = config.source
    if is_remote(source):
        copies = download(source, expanded(config.cache), tally)
        return {name: str(copy) for name, copy in copies.items()}, SavedSets("", copies)
    if on_hub(config):
        folder = Path(source.removeprefix(HUGGING_FACE).partition(":")[0])
        files = folder_files(folder, tally) if folder.is_dir() else []
        return dict(zip(files, files, strict=True)), SavedSets(str(folder))
    path = local_data_set(source) or expanded(source)
    beginning = str(path)  # of the source, a folder unless it is one file
    if source == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        listed = folder_files(root, Tally(), NOT_STDLIB)
        files = [file for file in listed if file.endswith(".py")]
    elif path.is_file():
        files = [str(path)]
    elif path.is_dir():
        files = folder_files(path, tally)
        if not files:
            other = f"; there are {tally.reasons()}" if tally.passed_over else ""
            raise DataError(
                f"data.source={source!r}: no files in this folder (hidden ones are not read)"
                f"{other}"
            )
    elif path.exists():
        raise DataError(
            f"data.source={source!r}: neither a file nor a folder (a device or a pipe)"
        )
    else:
        files, beginning = glob_files(str(path), tally), fixed_part(str(path))
        if not files:
            raise DataError(
                f"data.source={source!r}: no such file, folder or glob{_hint(source, tally)}"
            )
    return dict(zip(files, files, strict=True)), SavedSets(beginning)


def _hint(source: str, tally: Tally) -> str:
    """Return what a source that does not exist may have meant, as the end of an error."""
    if tally.passed_over:
        return f"; passed over: {tally.reasons()}"
    suffix = Path(source).suffix
    if HUB_NAME.fullmatch(source) and not suffix and not glob.has_magic(source):
        return f"; did you mean hf:{source}, a dataset on the Hugging Face hub?"
    return ""


class _Refused(DataError):
    """Ends a reader at the first document that it refuses, whose reason is reported later."""


def _in_order(
    reading: Reading, read: Callable[[Refuse], Iterator[Chunk | tuple[Text, str]]]
) -> Iterator[tuple[Chunk, Reading]]:
    """Yield what a reader yields, and what it refuses, in order."""
    refused: list[Chunk] = []

    def refuse(reason: str) -> None:
        syntax = NOT_TEXT if isinstance(reason, NotText) else REFUSAL
        refused.append(Chunk(syntax, b"", str(reason)))
        if reading.ends_at_refusal:  # a row may be the first of millions without the field
            raise _Refused

    with suppress(_Refused):
        for found in read(refuse):
            yield from ((chunk, reading) for chunk in refused)
            refused.clear()
            if not isinstance(found, Chunk):
                text, origin = found
                found = Chunk(DOCUMENT, _data(text), origin)
            yield found, reading
    yield from ((chunk, reading) for chunk in refused)


def _data(text: Text) -> bytes | LongText:
    """Return the UTF-8 of a text unless it is long."""
    if isinstance(text, str) and len(text) <= LONG_BYTES:
        return text.encode()
    return LongText(lambda: parts_of(text))


def _refuse(reason: str, config: DataConfig, tally: Tally, kind: str) -> None:
    """Raise DataError for a document that cannot be read, or count it."""
    if config.errors == "skip":
        return tally.add(printable_line(reason))
    remedies = "fix it, or leave out such documents with --data.errors skip"
    if kind in (JSON_LINES, JSON, CSV) and not isinstance(reason, NotText):
        remedies += f", or read files of {kind} as plain text with --data.format text"
    raise DataError(f"{printable_line(reason)}; {remedies}")
