"""Read documents that are lines of JSON, in parts that any process can take apart."""

import json
from collections.abc import Iterator
from functools import cache
from io import BufferedReader, BytesIO
from typing import cast

from moebius.data.chunk import LINES, UNCOUNTED, Chunk, FilePart, Origin, Place
from moebius.data.compression import is_damage
from moebius.data.formats import SourceFile
from moebius.data.json_values import DECODER
from moebius.data.long_text import LONG_BYTES, Text, json_text
from moebius.data.messages import one_line
from moebius.data.rows import LONGEST_ROW, row_text
from moebius.data.text_files import LINE_BUFFER, MARK, NotText, Refuse, damage, decode

CHUNK_BYTES = 2**20
"""Bytes of lines that are read at once."""


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
    start = counted = num_lines = 0
    with file.path.open("rb", LINE_BUFFER) as raw:
        opened = cast(BufferedReader, raw)
        while start < file.size:
            stop = min(start + CHUNK_BYTES, file.size)
            opened.seek(stop - 1)
            end = opened.readline(LONG_BYTES)
            if not end:  # the file was cut meanwhile, which its hash will tell
                return
            if len(end) < LONG_BYTES or end.endswith(b"\n"):
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


def _too_long(origin: str) -> str:
    return f"{origin}: a line of more than {LONGEST_ROW:,} bytes"


def json_line_texts(chunk: Chunk, field: str, refuse: Refuse) -> Iterator[tuple[str, Origin]]:
    """Yield the text and the origin (FILE:LINE) of each line, a JSON object with a text field.

    Blank lines are skipped, and a line that cannot be read is reported to `refuse`.
    """
    offset = chunk.offset
    before = cache(chunk.lines_before)
    for number, line in enumerate(BytesIO(chunk.raw), start=1):
        text = decode(line, chunk.origin, offset, refuse)
        offset += len(line)
        if offset == len(line) and text is not None:
            text = text.removeprefix(MARK)
        if text is not None and text and not text.isspace():
            place = Place(chunk.origin, before, number)
            yield from _json_line_text(text, field, place, refuse)


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
    block, num_lines = bytearray(), 0
    try:
        while line := lines.readline(LONG_BYTES):
            if len(line) < LONG_BYTES:
                block += line
                num_lines += 1
                if len(block) < CHUNK_BYTES:
                    continue
            if block:
                yield block, num_lines
                block, num_lines = bytearray(), 0
            if len(line) == LONG_BYTES:
                yield _long_line(line, lines), 0
    except Exception:  # the data is damaged, but what comes before that is not
        if block:
            yield block, num_lines
        raise
    if block:
        yield block, num_lines


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
