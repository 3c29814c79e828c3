"""Read documents from their sources one at a time, in the same order on any machine."""

import glob
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from moebius.config import DataConfig
from moebius.config.paths import expanded
from moebius.config.printable import printable_line
from moebius.data.formats import ARROW, PARQUET, Format, SourceFile, identify
from moebius.data.hub import HUB_NAME, HUGGING_FACE, hub_rows, local_data_set
from moebius.data.listing import fixed_part, folder_files, glob_files
from moebius.data.remote import download, is_remote
from moebius.data.row_syntax import CSV, JSON, JSON_LINES
from moebius.data.rows import csv_rows, json_lines, json_objects
from moebius.data.saved_sets import SavedSets
from moebius.data.tables import arrow_rows, parquet_rows
from moebius.data.tally import Amount, Tally
from moebius.data.text_files import NotText, Refuse, text_pieces
from moebius.errors import ConfigError, DataError, StorageError

STDLIB = "python-stdlib"
NOT_STDLIB = ("site-packages", "dist-packages", "__pycache__")
"""Folders inside the standard library's folder that do not belong to it."""

Rows = Callable[[SourceFile, str, Refuse], Iterator[tuple[str, str]]]
READERS: dict[str, Rows] = {
    JSON_LINES: json_lines,
    JSON: json_objects,
    CSV: csv_rows,
    PARQUET: parquet_rows,
    ARROW: arrow_rows,
}
"""Functions that yield the text and the origin of each row of a file, by kind of file."""


class Document(NamedTuple):
    """A text and where it comes from."""

    text: str
    origin: str
    """The file, and the line, row or byte offset if the file has several documents."""


def weighted_sources(config: DataConfig) -> dict[DataConfig, float]:
    """Return a separate configuration for each source whose weight is above 0, and that weight.

    Commas separate sources, unless the whole text is the name of a file or folder. Raises
    ConfigError if data.source is not a list of distinct sources, and DataError if it cuts the name
    of a file or folder in two.
    """
    weights = config.weights
    if not isinstance(weights, tuple) and "," in config.source and _exists(config.source):
        return {replace(config, weights=1.0): weights}
    sources = [source.strip() for source in config.source.split(",")]
    if not all(sources) or len(set(sources)) < len(sources):
        raise ConfigError(
            f"data.source={config.source!r}: a source is empty, or named twice "
            "(commas separate sources)"
        )
    parts = config.source.split(",")
    spans = combinations(range(len(parts) + 1), 2)
    for start, stop in sorted(spans, key=lambda span: span[0] - span[1]):  # the longest first
        whole = ",".join(parts[start:stop]).strip()
        if stop - start > 1 and not _exists(sources[start]) and (name := _name_with_comma(whole)):
            kind = "folder" if Path(name).is_dir() else "file"
            raise DataError(
                f"data.source={config.source!r}: commas separate sources; for the {kind} "
                f"{name!r}, write ? in place of its comma: {whole.replace(',', '?')!r}"
            )
    if not isinstance(weights, tuple):
        weights = (weights,) * len(sources)
    return {
        replace(config, source=source, weights=1.0): weight
        for source, weight in zip(sources, weights, strict=True)
        if weight
    }


def documents(
    config: DataConfig, tally: Tally | None = None, listed: "Inventory | None" = None
) -> Iterator[Document]:
    """Yield every document that is not empty, for a configuration with a single source.

    `listed` is the inventory of its files, if there is one already. If a document cannot be read,
    data.errors decides: either DataError is raised, naming the file and the place in it, or the
    document is counted in `tally`, like all that is read and all files that are not. Raises
    StorageError if the system does not let a file be read.
    """
    tally = Tally() if tally is None else tally
    listed = listed or inventory(config)
    tally.include(listed.tally)
    if on_hub(config):

        def refuse(reason: str) -> None:
            _refuse(reason, config, tally, "")

        amount = tally.read.setdefault(config.source, Amount())
        texts = hub_rows(config.source, config.text_field, refuse)
        yield from _counted(texts, amount)
        return
    for file in listed.files:
        amount = tally.read.setdefault(file.format.label, Amount())
        amount.files += 1
        yield from _counted(_read(file, config, tally, len(listed.files) == 1), amount)


class Inventory(NamedTuple):
    """The files of a source. Every file was opened to find out what it is."""

    files: list[SourceFile]
    """The files that are read, in the order in which they are."""
    tally: Tally
    """The files that are not, with the reasons."""


def inventory(config: DataConfig, known: Inventory | None = None) -> Inventory:
    """Return the local files of a single source.

    - A folder stands for all files below it, whatever their suffix, so that a folder of source
      code works. Hidden files (.git, .venv) are left out. Links are followed once.
    - A glob stands for all files that match it, and the path of a single file for that file.
    - A URL is downloaded into the cache unless that has been done before, and the copies are
      returned.
    - A dataset on the Hugging Face hub has no local files.

    Files that hold no text that can be read are counted; if the source is only one such file, that
    is an error. Files that are read according to `known`, an earlier inventory, are not opened
    again. Raises DataError if there are no files, StorageError if they cannot be
    listed or downloaded, and ConfigError for a URL of an unknown kind.
    """
    tally = Tally()
    formats = {file.path: file.format for file in known.files} if known else {}
    try:
        named, saved_sets = _candidates(config, tally)
        files: list[SourceFile] = []
        as_text = config.format == "text" or config.source == STDLIB
        for name, path in named.items():
            if on_hub(config):  # `datasets` decides what the file is
                files.append(SourceFile(path, name, Format("")))
                continue
            if reason := saved_sets.reason(name):
                tally.pass_over(reason, name)
                continue
            format_ = formats.get(path) or identify(path, name, as_text)
            if format_.kind:
                files.append(SourceFile(path, name, format_))
            elif format_.is_damaged:
                _refuse(f"{name}: {format_.reason}", config, tally, "")
            elif config.source != STDLIB:
                tally.pass_over(format_.reason, name)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror or error}") from None
    if not files and len(named) == 1 and tally.passed_over:
        raise DataError(f"data.source={config.source!r}: no text in it: {tally.reasons()}")
    return Inventory(files, tally)


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


def _candidates(config: DataConfig, tally: Tally) -> tuple[dict[str, Path], SavedSets]:
    """Return all files that a source names, by name, and what is known of saved data sets."""
    source = config.source
    if is_remote(source):
        copies = download(source, expanded(config.cache))
        return copies, SavedSets("", copies)
    if on_hub(config):
        folder = Path(source.removeprefix(HUGGING_FACE).partition(":")[0])
        files = folder_files(folder, tally) if folder.is_dir() else []
        return {str(file): file for file in files}, SavedSets(str(folder))
    path = local_data_set(source) or expanded(source)
    beginning = str(path)  # of the source, a folder unless it is one file
    if source == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        listed = folder_files(root, Tally(), NOT_STDLIB)
        files = [file for file in listed if file.suffix == ".py"]
    elif path.is_file():
        files = [path]
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
    return {str(file): file for file in files}, SavedSets(beginning)


def _hint(source: str, tally: Tally) -> str:
    """Return what a source that does not exist may have meant, as the end of an error."""
    if tally.passed_over:
        return f"; passed over: {tally.reasons()}"
    suffix = Path(source).suffix
    if HUB_NAME.fullmatch(source) and not suffix and not glob.has_magic(source):
        return f"; did you mean hf:{source}, a dataset on the Hugging Face hub?"
    return ""


def _exists(source: str) -> bool:
    if is_remote(source) or not source:
        return False
    # Unlike Path.exists, this raises no error for what is in a folder that cannot be entered.
    return os.path.exists(expanded(source))  # noqa: PTH110


def _name_with_comma(source: str) -> str:
    """Return the first file or folder on the path `source` that has a comma in its name, or ""."""
    path = Path(source)
    names = [str(name) for name in (*reversed(path.parents), path) if "," in name.name]
    return next(filter(_exists, names), "")


def _counted(texts: Iterator[tuple[str, str]], amount: Amount) -> Iterator[Document]:
    for text, origin in texts:
        if text:
            amount.documents += 1
            amount.bytes += len(text) if text.isascii() else len(text.encode())
            yield Document(text, origin)


def _read(
    file: SourceFile, config: DataConfig, tally: Tally, is_whole_source: bool
) -> Iterator[tuple[str, str]]:
    """Yield the text and origin of each document in a file."""

    def refuse(reason: str) -> None:
        # A few tests of the standard library are files in other encodings on purpose. They belong
        # to Python: the user cannot fix them and learns nothing from a message about them.
        if config.source != STDLIB:
            _refuse(reason, config, tally, file.format.kind)

    try:
        if reader := READERS.get(file.format.kind):
            yield from reader(file, config.text_field, refuse)
        else:
            # Two tests of the standard library begin with a byte order mark on purpose. It stays,
            # so that the tokens of every run on this source are the same as ever.
            keeps_mark = config.source == STDLIB
            yield from text_pieces(file, refuse, is_whole_source, keeps_mark)
    except OSError as error:
        raise StorageError(f"{file.path}: {error.strerror or error}") from None


def _refuse(reason: str, config: DataConfig, tally: Tally, kind: str) -> None:
    """Raise DataError for a document that cannot be read, or count it."""
    if config.errors == "skip":
        return tally.add(printable_line(reason))
    remedies = "fix it, or leave out such documents with --data.errors skip"
    if kind in (JSON_LINES, JSON, CSV) and not isinstance(reason, NotText):
        remedies += f", or read files of {kind} as plain text with --data.format text"
    raise DataError(f"{printable_line(reason)}; {remedies}")
