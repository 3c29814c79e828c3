"""Read documents that are rows of JSON lines, Parquet files and Hugging Face datasets.

Each row has its text in one field.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moebius.data.messages import one_line
from moebius.data.text_files import Refuse, decode
from moebius.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet

LINE_SUFFIXES = {".jsonl", ".ndjson"}
PARQUET_SUFFIXES = {".parquet"}
PARQUET_ROWS, PARQUET_BYTES = 256, 2**25
"""Largest number of rows, and approximate largest number of bytes, of a Parquet file that are in
memory at once."""
SURROGATE = re.compile("[\ud800-\udfff]")
SHOWN_FIELDS = 12
"""Number of fields that an error message lists."""
ANSWER_SECONDS = 4
"""How long the Hugging Face hub may take to say whether a dataset exists."""


def json_lines(file: Path, field: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """Yield the text and the origin (FILE:LINE) of each line, a JSON object with a text field.

    Blank lines are skipped, and a line that cannot be read is reported to `refuse`. Raises
    OSError.
    """
    offset = number = 0
    with file.open("rb") as lines:
        while line := lines.readline():
            number += 1
            origin = f"{file}:{number}"
            text = decode(line, str(file), offset, refuse)
            offset += len(line)
            if number == 1 and text is not None:
                # Windows tools begin a file with a byte order mark, which is not part of the row.
                text = text.removeprefix("\ufeff")
            if text is None or not text or text.isspace():
                continue
            line = b""  # a line may be hundreds of megabytes long: do not keep it in memory twice
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                refuse(f"{origin}: column {error.colno} is not JSON ({error.msg})")
            # ValueError for a number of thousands of digits, RecursionError for deep nesting.
            except (ValueError, RecursionError) as error:
                refuse(f"{origin}: not JSON that can be read ({one_line(error)})")
            else:
                del text
                yield from _row_text(row, field, origin, refuse)
                del row


def parquet_rows(file: Path, field: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """Yield the text and the origin (file and row number) of each row, in bounded memory.

    A row or file that cannot be read is reported to `refuse`. Raises OSError.
    """
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
                    except UnicodeDecodeError as error:  # pyarrow does not check a file's strings
                        byte = error.object[error.start]
                        refuse(f"{origin}: byte offset {error.start} is not UTF-8 (0x{byte:02x})")
                    else:
                        yield from _row_text({field: text}, field, origin, refuse)
    except (pyarrow.ArrowException, OSError) as error:
        # Damage inside the file is one of Arrow's own errors, or an OSError without a number.
        if isinstance(error, OSError) and error.errno:
            raise
        refuse(f"{file}: not readable as Parquet after row {number} ({one_line(error)})")


def hugging_face_rows(source: str, field: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """Yield the text and the origin (source and row number) of each row of `hf:NAME[:SUBSET]`.

    NAME is a dataset on the Hugging Face hub, whose split "train" is streamed, or a local folder.
    A row that cannot be read is reported to `refuse`. Raises DataError for any error of the
    library: no such dataset, no network, damaged files.
    """
    import datasets
    import huggingface_hub

    name, _, subset = source.removeprefix("hf:").partition(":")
    if not name:
        raise DataError(f"data.source={source!r}: must be hf:NAME or hf:NAME:SUBSET")
    try:
        if not Path(name).exists() and not huggingface_hub.constants.HF_HUB_OFFLINE:
            # If there is no network or no such dataset, load_dataset would print retries for half
            # a minute before it fails.
            huggingface_hub.HfApi().dataset_info(name, timeout=ANSWER_SECONDS)
        rows = datasets.load_dataset(name, subset or None, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from _row_text(row, field, f"{source}: row {number}", refuse)
    except DataError:
        raise
    except Exception as error:  # errors of the library itself and of httpx, fsspec and pyarrow
        raise DataError(
            f"data.source={source!r}: {type(error).__name__}: {one_line(error)}"
        ) from None


def _row_text(row: Any, field: str, origin: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """Yield the text of the row and its origin, or nothing if the row has no valid text."""
    if not isinstance(row, dict):
        return refuse(
            f"{origin}: must be an object with a field {field!r}, not {type(row).__name__}"
        )
    if field not in row:
        return refuse(f"{origin}: {_no_field(field, list(row))}")
    text = row[field]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        return refuse(f"{origin}: field {field!r} is {kind}, not text")
    # JSON can spell half of a surrogate pair, as \ud800, which no encoding can store.
    if not text.isascii() and (half := SURROGATE.search(text)):
        return refuse(
            f"{origin}: field {field!r} has half a surrogate pair at character {half.start()}"
        )
    yield text, origin


def _no_field(field: str, names: list[str]) -> str:
    if not names:
        return f"no field {field!r}, and no other field"
    more = ", ..." if len(names) > SHOWN_FIELDS else ""
    shown = ", ".join(map(str, names[:SHOWN_FIELDS]))
    return f"no field {field!r} (set --data.text_field to one of: {shown}{more})"


def _rows_at_once(table: "pyarrow.parquet.ParquetFile") -> int:
    """Return a number of rows that take about `PARQUET_BYTES` of memory.

    The estimate uses the mean row length of the row group with the longest rows.
    """
    groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
    row_bytes = max(
        (group.total_byte_size // max(1, group.num_rows) for group in groups), default=0
    )
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES // max(1, row_bytes)))
