"""Read documents that are rows of Parquet and Arrow files, in bounded memory."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moebius.data.chunk import Origin
from moebius.data.compression import is_damage
from moebius.data.formats import SourceFile
from moebius.data.long_text import LONG_BYTES, LongText, Text, utf8_text
from moebius.data.messages import one_line
from moebius.data.rows import row_text, wrong_field
from moebius.data.text_files import Refuse

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

PARQUET_ROWS, PARQUET_BYTES = 256, 2**25
"""Largest number of rows, and approximate largest number of bytes, of a Parquet file that are in
memory at once."""


def parquet_rows(file: SourceFile, field: str, refuse: Refuse) -> Iterator[tuple[Text, Origin]]:
    """Yield the text and the origin (file and row number) of each row, in bounded memory.

    A row or file that cannot be read is reported to `refuse`. Raises OSError.
    """
    import pyarrow.parquet

    def batches(contents: Any) -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(contents) as table:
            yield table.schema_arrow
            yield from table.iter_batches(batch_size=_rows_at_once(table), columns=[field])

    return _table_rows(file, field, refuse, batches)


def arrow_rows(file: SourceFile, field: str, refuse: Refuse) -> Iterator[tuple[Text, Origin]]:
    """Yield the text and the origin (file and row number) of each row of an Arrow file or stream.

    `Dataset.save_to_disk` writes such streams. A row or file that cannot be read is reported to
    `refuse`. Raises OSError.
    """
    import pyarrow

    def batches(contents: Any) -> Iterator[Any]:
        # A memory map, so that a batch that is the whole file does not have to fit into memory.
        mapped = isinstance(contents, str)
        source = pyarrow.memory_map(contents) if mapped else pyarrow.PythonFile(contents, "r")
        with source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                reader = pyarrow.ipc.open_file(source)
                yield reader.schema
                numbers = range(reader.num_record_batches)
                yield from (reader.get_batch(number).select([field]) for number in numbers)
            else:
                reader = pyarrow.ipc.open_stream(source)
                yield reader.schema
                yield from (batch.select([field]) for batch in reader)

    return _table_rows(file, field, refuse, batches)


def _table_rows(
    file: SourceFile, field: str, refuse: Refuse, batches: Any
) -> Iterator[tuple[Text, Origin]]:
    """Yield the text and the origin of each row of a table.

    `batches` takes a path or an open file and yields the schema, then batches of rows with the one
    column.
    """
    import pyarrow

    number = 0
    try:
        with _seekable(file) as contents:
            parts = batches(contents)
            schema = next(parts)
            with_text = [column.name for column in schema if _is_text(column.type)]
            if wrong := wrong_field(field, schema.names, with_text):
                return refuse(f"{file.name}: {wrong}")
            for batch in parts:
                for value in batch.column(0):
                    number += 1
                    origin = f"{file.name}: row {number}"
                    if long_text := _long_text(value):
                        yield long_text, origin
                        continue
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:  # pyarrow does not check a file's strings
                        byte = error.object[error.start]
                        refuse(f"{origin}: byte offset {error.start} is not UTF-8 (0x{byte:02x})")
                    else:
                        yield from row_text({field: text}, field, origin, refuse)
    except Exception as error:
        if not (isinstance(error, pyarrow.ArrowException) or is_damage(error)):
            raise
        kind = file.format.label
        refuse(f"{file.name}: not readable as {kind} after row {number} ({one_line(error)})")


def _long_text(value: Any) -> LongText | None:
    """Return the text of a long cell, which stays where Arrow has it."""
    is_buffer = value.is_valid and hasattr(value, "as_buffer")
    data = value.as_buffer() if is_buffer else b""
    return utf8_text(data) if len(data) > LONG_BYTES else None


def _is_text(type_: "pyarrow.DataType") -> bool:
    import pyarrow.types

    if pyarrow.types.is_dictionary(type_):
        type_ = type_.value_type
    return any(
        is_kind(type_)
        for is_kind in (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_string_view,
        )
    )


@contextmanager
def _seekable(file: SourceFile) -> Iterator[Any]:
    """Yield the path of the contents, or an open copy on the disk if they are compressed."""
    if not file.format.compressions:
        file.path.open("rb").close()  # whose errors name the file
        yield str(file.path)
        return
    with tempfile.TemporaryFile() as copy:
        with file.open() as opened:
            shutil.copyfileobj(opened, copy, 2**20)
        copy.seek(0)
        yield copy


def _rows_at_once(table: "pyarrow.parquet.ParquetFile") -> int:
    """Return a number of rows that take about `PARQUET_BYTES` of memory.

    The estimate uses the mean row length of the row group with the longest rows.
    """
    groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
    row_bytes = max(
        (group.total_byte_size // max(1, group.num_rows) for group in groups), default=0
    )
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES // max(1, row_bytes)))
