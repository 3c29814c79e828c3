"""Documents that are rows: JSON lines, Parquet and Hugging Face data sets, one text field each."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moebius.data.text_files import decode
from moebius.errors import DataError

LINE_SUFFIXES = {".jsonl", ".ndjson"}
PARQUET_SUFFIXES = {".parquet"}
PARQUET_ROWS = 256  # in memory at once
SHOWN_FIELDS = 12  # in an error line

Refuse = Callable[[str], None]


def json_lines(file: Path, field: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """(text, file:line) of each line, an object. Blank lines are none. Raises OSError."""
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            origin = f"{file}:{number}"
            text = decode(line, str(file), offset, refuse)
            offset += len(line)
            if number == 1 and text is not None:
                text = text.removeprefix("\ufeff")  # Windows tools begin a file so; it is no part of the first row
            if text is None or not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                refuse(f"{origin}: column {error.colno} is not JSON ({error.msg})")
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                refuse(f"{origin}: not JSON that can be read ({_one_line(error)})")
            else:
                yield from _row(row, field, origin, refuse)


def parquet_rows(file: Path, field: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """(text, file and row) of each row, in bounded memory. Raises OSError."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if field not in names:
                return refuse(f"{file}: {_no_field(field, names)}")
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
                for value in batch.column(0):
                    number += 1
                    origin = f"{file}: row {number}"
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:  # pyarrow does not check what a writer calls a string
                        refuse(f"{origin}: byte offset {error.start} is not UTF-8 (0x{error.object[error.start]:02x})")
                    else:
                        yield from _row({field: text}, field, origin, refuse)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        # damage inside the file is an OSError without a number, or one of Arrow's own
        refuse(f"{file}: not readable as Parquet after row {number} ({_one_line(error)})")


def hugging_face_rows(source: str, field: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """(text, source and row) of each row of `hf:NAME[:SUBSET]`, split train, streamed. NAME may be a local folder.

    Raises DataError for anything the library reports: no such data set, no network, damaged files.
    """
    import datasets

    name, _, subset = source.removeprefix("hf:").partition(":")
    if not name:
        raise DataError(f"data.source={source!r}: hf:NAME or hf:NAME:SUBSET is wanted")
    try:
        rows = datasets.load_dataset(name, subset or None, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from _row(row, field, f"{source}: row {number}", refuse)
    except DataError:
        raise
    except Exception as error:  # its own errors, and those of httpx, fsspec and pyarrow
        raise DataError(f"data.source={source!r}: {type(error).__name__}: {_one_line(error)}") from None


def _row(row: Any, field: str, origin: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    if not isinstance(row, dict):
        return refuse(f"{origin}: an object with a field {field!r} is wanted, not {type(row).__name__}")
    if field not in row:
        return refuse(f"{origin}: {_no_field(field, list(row))}")
    text = row[field]
    if not isinstance(text, str):
        return refuse(f"{origin}: field {field!r} is {'null' if text is None else type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character: \ud800
        return refuse(f"{origin}: field {field!r} has half a surrogate pair at character {error.start}")
    yield text, origin


def _no_field(field: str, names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN_FIELDS else ""
    shown = ", ".join(map(str, names[:SHOWN_FIELDS])) + more if names else "none"
    return f"no field {field!r} (--data.text_field); there are: {shown}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
