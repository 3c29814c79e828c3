"""Documents that are rows: JSON lines, Parquet and Hugging Face data sets, one text field each."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moebius.data.text_files import decode
from moebius.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet

LINE_SUFFIXES = {".jsonl", ".ndjson"}
PARQUET_SUFFIXES = {".parquet"}
PARQUET_ROWS, PARQUET_BYTES = 256, 2**25  # in memory at once
HALF = re.compile("[\ud800-\udfff]")
SHOWN_FIELDS = 12  # in an error line
ANSWER_SECONDS = 4

Refuse = Callable[[str], None]


def json_lines(file: Path, field: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """(text, file:line) of each line, an object. Blank lines are none. Raises OSError."""
    offset = number = 0
    with file.open("rb") as lines:
        while line := lines.readline():
            number += 1
            origin = f"{file}:{number}"
            text = decode(line, str(file), offset, refuse)
            offset += len(line)
            if number == 1 and text is not None:
                text = text.removeprefix("\ufeff")  # Windows tools begin a file so; it is no part of the first row
            if text is None or not text or text.isspace():
                continue
            line = b""  # a line may be hundreds of megabytes: one copy less
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                refuse(f"{origin}: column {error.colno} is not JSON ({error.msg})")
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                refuse(f"{origin}: not JSON that can be read ({one_line(error)})")
            else:
                del text
                yield from _row(row, field, origin, refuse)
                del row


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
            for batch in table.iter_batches(batch_size=_rows_at_once(table), columns=[field]):
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
        refuse(f"{file}: not readable as Parquet after row {number} ({one_line(error)})")


def hugging_face_rows(source: str, field: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """(text, source and row) of each row of `hf:NAME[:SUBSET]`, split train, streamed. NAME may be a local folder.

    Raises DataError for anything the library reports: no such data set, no network, damaged files.
    """
    import datasets
    import huggingface_hub

    name, _, subset = source.removeprefix("hf:").partition(":")
    if not name:
        raise DataError(f"data.source={source!r}: hf:NAME or hf:NAME:SUBSET is wanted")
    try:
        if not Path(name).exists() and not huggingface_hub.constants.HF_HUB_OFFLINE:
            # load_dataset would try for half a minute, and say so, where there is no network or no such data set
            huggingface_hub.HfApi().dataset_info(name, timeout=ANSWER_SECONDS)
        rows = datasets.load_dataset(name, subset or None, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from _row(row, field, f"{source}: row {number}", refuse)
    except DataError:
        raise
    except Exception as error:  # its own errors, and those of httpx, fsspec and pyarrow
        raise DataError(f"data.source={source!r}: {type(error).__name__}: {one_line(error)}") from None


def _row(row: Any, field: str, origin: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    if not isinstance(row, dict):
        return refuse(f"{origin}: an object with a field {field!r} is wanted, not {type(row).__name__}")
    if field not in row:
        return refuse(f"{origin}: {_no_field(field, list(row))}")
    text = row[field]
    if not isinstance(text, str):
        return refuse(f"{origin}: field {field!r} is {'null' if text is None else type(text).__name__}, not text")
    if not text.isascii() and (half := HALF.search(text)):  # JSON can spell half a character: \ud800
        return refuse(f"{origin}: field {field!r} has half a surrogate pair at character {half.start()}")
    yield text, origin


def _no_field(field: str, names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN_FIELDS else ""
    shown = ", ".join(map(str, names[:SHOWN_FIELDS])) + more if names else "none"
    return f"no field {field!r} (--data.text_field); there are: {shown}"


def _rows_at_once(table: "pyarrow.parquet.ParquetFile") -> int:
    """As many as hold some 32 MB, going by the mean of the row group whose rows are longest."""
    groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES // max(1, longest)))


def one_line(error: BaseException) -> str:
    """An error's message, short, and without what may be secret in a URL: a user's name and password, the query."""
    message = " ".join(str(error).split())
    return re.sub(r"(\w://)[^\s/@'\"]*@", r"\1", re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", message))[:200]
