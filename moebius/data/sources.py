"""Documents from wherever the configuration says they are, one at a time and in the same order on any machine."""

import glob
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from moebius.config import DataConfig
from moebius.errors import DataError, StorageError

STDLIB = "python-stdlib"
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".pyi", ".c", ".h", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".go", ".rs"}
TEXT_SUFFIXES |= {".html", ".css", ".json", ".xml", ".yaml", ".yml", ".toml", ".sh", ".sql", ".tex", ".csv", ".log", ""}
LINE_SUFFIXES = {".jsonl", ".ndjson"}
PARQUET_SUFFIXES = {".parquet"}
PIECE_CHARACTERS = 32_768  # of a text file that is the whole source
PARQUET_ROWS = 1024  # rows in memory at once


class Document(NamedTuple):
    """A text and where it came from."""

    text: str
    origin: str


@dataclass
class Skipped:
    """Documents left out because they could not be read, and why the first was."""

    count: int = 0
    first: str = ""

    def add(self, reason: str) -> None:
        self.count += 1
        self.first = self.first or reason


def documents(config: DataConfig, skipped: Skipped) -> Iterator[Document]:
    """Every non-empty document of the source.

    Raises DataError naming the file and place of what cannot be read (or counts it in `skipped`, as data.errors says),
    StorageError for a file that may not be opened.
    """

    def refuse(reason: str) -> None:
        if config.errors == "stop":
            raise DataError(f"{reason}; mend it, or leave such documents out with --data.errors skip")
        skipped.add(reason)

    if config.source.startswith("hf:"):
        found = _hugging_face(config, refuse)
    elif config.source == STDLIB:
        # a few of its tests are files in other encodings, on purpose: nobody can mend those
        found = _files(source_files(config), config, refuse=lambda reason: None)
    else:
        found = _files(source_files(config), config, refuse)
        if _is_one_text_file(Path(config.source).expanduser()):
            found = _pieces(found)
    yield from (document for document in found if document.text)


def source_files(config: DataConfig) -> list[Path]:
    """The files of a local source, sorted. In a folder those with a suffix of text, JSON lines or Parquet; hidden ones and
    symbolic links out of it are left alone. Raises DataError if there are none."""
    if config.source == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [file for file in _walk(root, leave_out={"site-packages", "dist-packages"}) if file.suffix == ".py"]
        return sorted(files, key=lambda file: file.relative_to(root).as_posix())
    path = Path(config.source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        known = TEXT_SUFFIXES | LINE_SUFFIXES | PARQUET_SUFFIXES
        files = sorted(file for file in _walk(path) if file.suffix.lower() in known)
        if not files:
            raise DataError(f"data.source={config.source!r}: no text, .jsonl or .parquet files in this folder")
        return files
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not files:
        raise DataError(f"data.source={config.source!r}: no such file, folder or glob")
    return files


def _walk(root: Path, leave_out: AbstractSet[str] = frozenset()) -> Iterator[Path]:
    """Files below a folder, hidden ones and links to folders aside."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in leave_out and not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


Refuse = Callable[[str], None]


def _pieces(found: Iterator[Document]) -> Iterator[Document]:
    """A file given alone is often one long text in which nothing marks documents: it is cut at line ends, so that some of
    it can be held out."""
    for document in found:
        piece: list[str] = []
        size = 0
        for line in document.text.splitlines(keepends=True):
            piece.append(line)
            size += len(line)
            if size >= PIECE_CHARACTERS:
                yield Document("".join(piece), document.origin)
                piece, size = [], 0
        if piece:
            yield Document("".join(piece), document.origin)


def _is_one_text_file(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() not in LINE_SUFFIXES | PARQUET_SUFFIXES


def _files(files: list[Path], config: DataConfig, refuse: Refuse) -> Iterator[Document]:
    for file in files:
        try:
            if file.suffix.lower() in LINE_SUFFIXES:
                yield from _json_lines(file, config.text_field, refuse)
            elif file.suffix.lower() in PARQUET_SUFFIXES:
                yield from _parquet(file, config.text_field, refuse)
            else:
                text = _decode(file.read_bytes(), str(file), 0, refuse)
                if text is not None:
                    yield Document(text, str(file))
        except OSError as error:
            raise StorageError(f"{file}: {error.strerror or error}") from None


def _decode(data: bytes, origin: str, offset: int, refuse: Refuse) -> str | None:
    # bytes are decoded by hand: reading as text would translate line ends and change the count of bytes
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        refuse(f"{origin}: byte offset {offset + error.start} is not UTF-8 (0x{data[error.start]:02x})")
        return None


def _json_lines(file: Path, field: str, refuse: Refuse) -> Iterator[Document]:
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            origin = f"{file}:{number}"
            text = _decode(line, str(file), offset, refuse)
            offset += len(line)
            if text is None or not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                # the error counts columns from 1 and names no file
                refuse(f"{origin}: not JSON, {error}")
                continue
            yield from _row(row, field, origin, refuse)


def _parquet(file: Path, field: str, refuse: Refuse) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        if field not in columns:
            raise DataError(f"{file}: no column {field!r}; it has {', '.join(columns)}: set --data.text_field")
        row = 0
        for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
            for value in batch.column(0).to_pylist():
                row += 1
                yield from _row({field: value}, field, f"{file}: row {row}", refuse)
    except pyarrow.ArrowException as error:
        refuse(f"{file}: not readable as Parquet: {' '.join(str(error).split())[:200]}")


def _hugging_face(config: DataConfig, refuse: Refuse) -> Iterator[Document]:
    import datasets

    name, _, subset = config.source.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(name, subset or None, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from _row(row, config.text_field, f"{config.source}: row {number}", refuse)
    except DataError:
        raise
    except Exception as error:  # the library raises its own, requests', fsspec's and pyarrow's errors
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"data.source={config.source!r}: {type(error).__name__}: {reason}") from None


def _row(row: Any, field: str, origin: str, refuse: Refuse) -> Iterator[Document]:
    if not isinstance(row, dict):
        return refuse(f"{origin}: an object with a field {field!r} is wanted, not {type(row).__name__}")
    if field not in row:
        return refuse(f"{origin}: no field {field!r}; there are {', '.join(map(str, row)) or 'none'} (--data.text_field)")
    text = row[field]
    if not isinstance(text, str):
        return refuse(f"{origin}: field {field!r} is {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return refuse(f"{origin}: field {field!r} has a lone surrogate at character {error.start}, which is not Unicode text")
    yield Document(text, origin)
