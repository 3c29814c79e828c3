"""Read documents that are rows of text files: JSON lines, JSON arrays and CSV.

Each row has its text in one field.
"""

import csv
import json
import re
from collections.abc import Iterator
from functools import cache
from io import BufferedReader, BytesIO
from typing import Any, cast

from moebius.cost.units import counted
from moebius.data.chunk import LINES, UNCOUNTED, Chunk, FilePart, Origin, Place
from moebius.data.compression import is_damage
from moebius.data.formats import SourceFile
from moebius.data.json_values import DECODER, NotJson, NotUtf8, Repeated, json_values
from moebius.data.long_text import LONG_BYTES, Text, json_text
from moebius.data.messages import one_line
from moebius.data.row_syntax import SEPARATORS
from moebius.data.text_files import LINE_BUFFER, MARK, NotText, Refuse, damage, decode

CHUNK_BYTES = 2**20
"""Bytes of lines that are read at once."""
LONGEST_ROW = 2**28
"""Most bytes of one row. A longer one is not read, because it might be a file without line ends
that does not fit into memory."""
SURROGATE = re.compile("[\ud800-\udfff]")
SHOWN_FIELDS = 12
"""Number of fields that an error message lists."""


def json_line_chunks(
    file: SourceFile, field: str, refuse: Refuse
) -> Iterator[Chunk | tuple[Text, str]]:
    """Yield whole lines, about `CHUNK_BYTES` at once, or the text and origin of a long line.

    Of a file that is not compressed, only the places of the lines are found, and the lines are
    read by whoever takes them apart. A line that is too long is reported to `refuse`. Raises
    OSError.
    """
    if file.size and not file.format.compressions:
        yield from _line_parts(file, field, refuse)
        return
    offset = number = 0
    try:
        with file.open() as lines:
            for block, num_lines in _line_blocks(lines):
                start, first = offset, number
                offset += len(block)
                number += num_lines or 1
                if num_lines:
                    yield Chunk(LINES, block, file.name, start, first)
                elif len(block) > LONGEST_ROW:
                    refuse(_too_long(f"{file.name}:{number}"))
                    offset += 0 if block.endswith(b"\n") else _skip_line(lines)
                else:
                    yield _long_row(Chunk(LINES, block, file.name, start, first), field)
    except Exception as error:
        if not is_damage(error):
            raise
        refuse(damage(file, error, f" after line {number}"))


def _line_parts(
    file: SourceFile, field: str, refuse: Refuse
) -> Iterator[Chunk | tuple[Text, str]]:
    """Yield where the lines are in a file that is not compressed, or a long line."""
    longest = _longest_short_line()
    start = counted = num_lines = 0
    with file.path.open("rb", LINE_BUFFER) as raw:
        opened = cast(BufferedReader, raw)
        while start < file.size:
            stop = min(start + CHUNK_BYTES, file.size)
            opened.seek(stop - 1)
            end = opened.readline(longest)
            if len(end) < longest or end.endswith(b"\n"):
                stop = min(stop - 1 + len(end), file.size)
                yield _lines(file, start, stop)
                start = stop
                continue
            opened.seek(start)
            if before := opened.read(stop - start).rfind(b"\n") + 1:
                yield _lines(file, start, start + before)
                start += before
            num_lines += FilePart(file.location, counted, start).count_lines()
            counted = start
            opened.seek(start)
            block = _long_line(b"", opened)
            if len(block) > LONGEST_ROW:
                refuse(_too_long(f"{file.name}:{num_lines + 1}"))
                start += 0 if block.endswith(b"\n") else _skip_line(opened)
            else:
                yield _long_row(Chunk(LINES, block, file.name, start, num_lines), field)
            start += len(block)


def _lines(file: SourceFile, start: int, stop: int) -> Chunk:
    return Chunk(LINES, FilePart(file.location, start, stop), file.name, start, UNCOUNTED)


def _long_row(chunk: Chunk, field: str) -> Chunk | tuple[Text, str]:
    """Return the text and the origin of a long line, or the line if something is wrong in it."""
    assert isinstance(chunk.data, bytearray)
    text = json_text(chunk.data, field)
    return (text, f"{chunk.origin}:{chunk.line + 1}") if text else chunk


def _too_long(origin: Origin) -> str:
    return f"{origin}: a line of more than {LONGEST_ROW:,} bytes"


def json_line_texts(chunk: Chunk, field: str, refuse: Refuse) -> Iterator[tuple[str, Origin]]:
    """Yield the text and the origin (FILE:LINE) of each line, a JSON object with a text field.

    Blank lines are skipped, and a line that cannot be read is reported to `refuse`.
    """
    offset = chunk.offset
    before = cache(chunk.lines_before)
    for number, line in enumerate(BytesIO(chunk.raw), start=1):
        text, place = None, Place(chunk.origin, before, number)
        if len(line) > LONGEST_ROW:
            refuse(_too_long(place))
        else:
            text = decode(line, chunk.origin, offset, refuse)
        offset += len(line)
        if offset == len(line) and text is not None:
            text = text.removeprefix(MARK)
        if text is not None and text and not text.isspace():
            yield from _json_line_text(text, field, place, refuse)


def json_objects(file: SourceFile, field: str, refuse: Refuse) -> Iterator[tuple[str, Origin]]:
    """Yield the text and the origin (file and row number) of each object in a JSON file.

    The file is an array of objects, or has objects one after another. Only one of them at a time
    is in memory. A row that cannot be read is reported to `refuse`, like the first place that is
    not JSON, after which nothing can be read. Raises OSError.
    """
    number = 0
    try:
        with file.open() as opened:
            for row in json_values(opened, LONGEST_ROW):
                number += 1
                yield from row_text(row, field, f"{file.name}: row {number}", refuse)
    except NotJson as error:
        reason = f"{file.name}: not readable as JSON after row {number} ({error})"
        refuse(NotText(reason) if isinstance(error, NotUtf8) else reason)
    except Exception as error:
        if not is_damage(error):
            raise
        refuse(damage(file, error, f" after row {number}"))


def csv_rows(file: SourceFile, field: str, refuse: Refuse) -> Iterator[tuple[str, Origin]]:
    """Yield the text and the origin (FILE:LINE) of each row of a CSV file whose first row names
    the columns.

    The separator is the one with which the first row names the field: a comma, semicolon, tab or
    vertical bar. A row that cannot be read, or that has another number of columns than the first
    one, is reported to `refuse`. Raises OSError.
    """
    number = 0
    try:
        with file.open() as opened:
            lines = _csv_lines(opened)
            first = next(lines, "").removeprefix(MARK)
            headers = [_header(first, separator) for separator in SEPARATORS]
            separator, names = next(
                (
                    (separator, names)
                    for separator, names in zip(SEPARATORS, headers, strict=True)
                    if field in names
                ),
                (",", max(headers, key=len)),
            )
            if half := SURROGATE.search(first):
                return refuse(NotText(f"{file.name}:1: not UTF-8 (0x{_byte(half):02x})"))
            if wrong := wrong_field(field, names, names):
                return refuse(f"{file.name}: {wrong}")
            csv.field_size_limit(LONGEST_ROW)
            rows = csv.reader(lines, delimiter=separator, strict=True)
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    refuse(f"{file.name}:{rows.line_num + 1}: not CSV ({error})")
                    continue
                number = rows.line_num + 1
                if row:
                    yield from _csv_text(row, names, field, f"{file.name}:{number}", refuse)
    except Exception as error:
        if not is_damage(error):
            raise
        refuse(damage(file, error, f" after line {number}"))


def row_text(row: Any, field: str, origin: Origin, refuse: Refuse) -> Iterator[tuple[str, Origin]]:
    """Yield the text of the row and its origin, or nothing if the row has no valid text."""
    if not isinstance(row, dict):
        return refuse(
            f"{origin}: must be an object with a field {field!r}, not {type(row).__name__}"
        )
    names = [*row, *row.repeated] if isinstance(row, Repeated) else list(row)
    with_text = [name for name in names if isinstance(row[name], str)]
    if wrong := wrong_field(field, names, with_text):
        return refuse(f"{origin}: {wrong}")
    text = row[field]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        return refuse(f"{origin}: field {field!r} is {kind}, not text")
    # JSON can spell half of a surrogate pair, as \ud800, which no encoding can store.
    if not text.isascii() and (half := SURROGATE.search(text)):
        return refuse(
            f"{origin}: field {field!r} has half a surrogate pair at character {half.start()}"
        )
    if "\0" in text:
        place = text.index("\0")
        return refuse(f"{origin}: field {field!r} has a zero byte at character {place}")
    yield text, origin


def wrong_field(field: str, names: list[str], with_text: list[str]) -> str:
    """Return why the field cannot be read from rows whose fields have these names, or "".

    `with_text` are the names of the fields that hold text, which the message lists.
    """
    if field in names:
        count = names.count(field)
        return f"{count} fields are named {field!r}; rename all but one" if count > 1 else ""
    if not with_text:
        others = f"none that holds text among: {_shown(names)}" if names else "no other field"
        return f"no field {field!r}, and {others}"
    return f"no field {field!r} (set --data.text_field to one of: {_shown(with_text)})"


def _shown(names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN_FIELDS else ""
    return ", ".join(one_line(ValueError(name)) for name in names[:SHOWN_FIELDS]) + more


def _json_line_text(
    text: str, field: str, origin: Origin, refuse: Refuse
) -> Iterator[tuple[str, Origin]]:
    try:
        row = DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = f"{origin}: column {error.colno} is not JSON ({error.msg})"
        refuse(NotText(reason) if "\0" in text else reason)
    # ValueError for a number of thousands of digits, RecursionError for deep nesting.
    except (ValueError, RecursionError) as error:
        refuse(f"{origin}: not JSON that can be read ({one_line(error)})")
    else:
        del text
        yield from row_text(row, field, origin, refuse)


def _line_blocks(lines: BufferedReader) -> Iterator[tuple[bytearray, int]]:
    """Yield all lines, several short ones at once or a long one alone, and how many there are.

    The number is 0 for a long line. Of one longer than `LONGEST_ROW`, only the beginning is read.
    """
    longest = _longest_short_line()
    block, num_lines = bytearray(), 0
    try:
        while line := lines.readline(longest):
            if len(line) < longest:
                block += line
                num_lines += 1
                if len(block) < CHUNK_BYTES:
                    continue
            if block:
                yield block, num_lines
                block, num_lines = bytearray(), 0
            if len(line) == longest:
                yield _long_line(line, lines), 0
    except Exception:  # the data is damaged, but what comes before that is not
        if block:
            yield block, num_lines
        raise
    if block:
        yield block, num_lines


def _longest_short_line() -> int:
    """Return the number of bytes from which on a line is long."""
    return min(LONG_BYTES, LONGEST_ROW + 1)


def _long_line(start: bytes, lines: BufferedReader) -> bytearray:
    """Return a line of which the start was read. It is never in memory twice."""
    line = bytearray(start)
    while not line.endswith(b"\n") and (room := LONGEST_ROW + 1 - len(line)) > 0:
        if not (more := lines.readline(min(LONG_BYTES, room))):
            break
        line += more
    return line


def _skip_line(lines: BufferedReader) -> int:
    """Read to the end of the line, a part at a time, and return the number of bytes."""
    skipped = 0
    while part := lines.readline(2**20):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _csv_lines(opened: BufferedReader) -> Iterator[str]:
    """Yield the lines. Bytes that are not UTF-8 become surrogates, so that their row is known."""
    while line := opened.readline(LONGEST_ROW):
        yield line.decode(errors="surrogateescape")


def _header(line: str, separator: str) -> list[str]:
    """Return the names in the first row; none if it is not CSV with this separator."""
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:
        return []


def _csv_text(
    row: list[str], names: list[str], field: str, origin: str, refuse: Refuse
) -> Iterator[tuple[str, str]]:
    if len(row) != len(names):  # a lone quotation mark may have joined several rows
        found = counted(len(row), "column")
        return refuse(f"{origin}: {found}, but the first row has {len(names)}")
    text = row[names.index(field)]
    if half := SURROGATE.search(text):
        return refuse(NotText(f"{origin}: field {field!r} is not UTF-8 (0x{_byte(half):02x})"))
    if any("\0" in cell for cell in row):
        return refuse(NotText(f"{origin}: has a zero byte"))
    yield text, origin


def _byte(half: re.Match[str]) -> int:
    """Return the byte for which `surrogateescape` has put half a surrogate pair."""
    return ord(half[0]) - 0xDC00
