"""Tell rows (JSON and CSV) from plain text by the first bytes of a file.

Rows that are taken for text teach a model their syntax, without a word to the user. Text that is
taken for rows is refused, which is loud, but wrong. So a file whose name does not say that it has
rows must look like rows in a way that neither prose nor code does.
"""

import csv
import json
import re
from collections.abc import Iterator
from io import StringIO
from itertools import islice

from moebius.data.json_values import NEAR_END

JSON_LINES, JSON, CSV = "JSON lines", "JSON", "CSV"
SEPARATORS = (",", ";", "\t", "|")
"""What separates the columns of CSV."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPARED_ROWS = 100
"""Rows of CSV that are compared with the first one."""
WRONG_ROWS = 0.1
"""Share of these rows that may have another number of columns. They are refused when read."""

_OBJECT = r'\{\s*"(?:[^"\\]|\\.)*"\s*:'
_OBJECT_START = re.compile(_OBJECT, re.DOTALL)
_ARRAY_OF_OBJECTS = re.compile(rf"\[\s*{_OBJECT}", re.DOTALL)
_ARRAY_START = re.compile(r'\[\s*("(?:[^"\\]|\\.)*"\s*[],]|[\[{])', re.DOTALL)
_NEXT_VALUE = re.compile(r'\s*,?\s*(?=\{\s*")|\s*[,\n]\s*(?=\[)')
_COLUMN = re.compile(r"[^\W\d][\w .:/()-]*")
"""Matches the name of a column. A table of numbers has no names and no text."""
_IN_NO_COLUMN = frozenset("!#$%&'*+,;<=>?@[\\]^`{|}~\t")
"""Characters that are in no name of a column, and neither quote nor end one."""
FEWEST_ROWS = 5
"""Rows, with the first one, that a file must have if its columns have other names than `text` and
words without spaces. Two lines of code may well have the same number of commas."""
_NEUTRAL_SUFFIXES = ("", ".txt", ".text")
"""Suffixes that do not say what a file is. Files of other names may be one JSON object, as those
of many tools are, and belong to the code around them."""


def row_kind(head: bytes, suffix: str, is_cut: bool) -> str:
    """Return `JSON_LINES`, `JSON` or `CSV` for a file of such rows, or "" for plain text.

    `head` is the beginning of the file, or all of it unless `is_cut`, and `suffix` is that of its
    name, in lower case. A file named .json is JSON in any case.
    """
    text = head.removeprefix(BYTE_ORDER_MARK).decode(errors="replace").lstrip()
    if kind := _json_kind(text, suffix, is_cut):
        return kind
    return JSON if suffix == ".json" else CSV if _is_csv(text, is_cut) else ""


def _json_kind(text: str, suffix: str, is_cut: bool) -> str:
    if _ARRAY_OF_OBJECTS.match(text):
        return JSON
    if not (text.startswith("{") or _ARRAY_START.match(text)):
        return ""
    lines = [line for line in text.split("\n") if line.strip()]
    if is_cut:
        lines = lines[:-1]  # which may not be complete
    if lines and all(map(_is_filled_object, lines[: 1 if suffix == ".json" else 2])):
        return JSON_LINES
    if not lines and _OBJECT_START.match(text):  # a first line that is longer than the head
        return JSON_LINES
    count, is_json = _num_values(text, is_cut)
    return JSON if count > 1 or (is_json and suffix in _NEUTRAL_SUFFIXES) else ""


def _is_filled_object(line: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and bool(row)


def _num_values(text: str, is_cut: bool) -> tuple[int, bool]:
    """Return the number of arrays and objects, up to 2, and whether nothing else follows them.

    The first one that is not complete counts if all of it that is there is right.
    """
    if not (_OBJECT_START.match(text) or _ARRAY_START.match(text)):
        return 0, False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        end = len(text) - NEAR_END if is_cut else len(text.rstrip())
        return 1, error.msg.startswith("Unterminated string") or error.pos >= end
    except (ValueError, RecursionError):  # JSON that no reader of rows accepts
        return 1, True
    if _NEXT_VALUE.match(text, end):
        return 2, True
    return 1, not text[end:].strip()


def _is_csv(text: str, is_cut: bool) -> bool:
    """Return whether the first line names columns and nearly all rows have that many."""
    first = text.partition("\n")[0].rstrip("\r")
    for separator in SEPARATORS:
        # Most prose is told by its first line, without a parser.
        if separator not in first or set(first) & _IN_NO_COLUMN - {separator}:
            continue
        names = next(_csv_rows(first, separator), [])
        if len(names) < 2 or not all(map(_COLUMN.fullmatch, names)):
            continue
        rows = [row for row in islice(_csv_rows(text, separator), COMPARED_ROWS) if row]
        if is_cut and len(rows) < COMPARED_ROWS:
            rows = rows[:-1]
        is_plain = "text" in names or all(name.isidentifier() for name in names)
        wrong = sum(len(row) != len(names) or (not is_plain and _is_prose(row)) for row in rows)
        return len(rows) >= (2 if is_plain else FEWEST_ROWS) and wrong <= WRONG_ROWS * len(rows)
    return False


def _is_prose(row: list[str]) -> bool:
    """Return whether a space follows a separator, as it does a comma in a sentence."""
    return any(cell.startswith(" ") for cell in row[1:])


def _csv_rows(text: str, separator: str) -> Iterator[list[str]]:
    """Yield the rows up to the first that is not CSV."""
    try:
        yield from csv.reader(StringIO(text, newline="\n"), delimiter=separator, strict=True)
    except csv.Error:
        return
