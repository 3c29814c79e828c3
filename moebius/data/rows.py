"""Read documents that are rows of text files, with their text in one field: JSON and CSV.

JSON lines, which can be read in parts, are in moebius/data/line_rows.py.
"""

import csv
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from moebius.cost.units import counted
from moebius.data.chunk import Origin
from moebius.data.compression import is_damage
from moebius.data.formats import SourceFile
from moebius.data.json_values import NotJson, NotUtf8, Repeated, json_values
from moebius.data.messages import one_line
from moebius.data.row_syntax import SEPARATORS
from moebius.data.text_files import MARK, NotText, Refuse, damage

LONGEST_ROW = 2**28
"""Most bytes of one row. A longer one is not read, because it might be a file without line ends
that does not fit into memory."""
SURROGATE = re.compile("[\ud800-\udfff]")
SHOWN_FIELDS = 12
"""Number of fields that an error message lists."""


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
