"""Texts of any length that are never in memory as whole strings.

A string of Python takes four bytes for each of its characters as soon as one of them is an emoji.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from moebius.data.json_values import DECODER, Repeated

LONG_BYTES = 2**20
"""Bytes above which a row is handled in parts."""
PART_BYTES = 2**18
"""Bytes that are decoded at once."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
"""Matches a JSON string, or the rest of a line that ends inside of one. If it did not match the
latter, the search would go on at each quote in it and read the rest each time."""
_WHOLE = re.compile(
    rb'(?:[^"\\]++|\\["\\/bfnrt]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    rb"|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4})*+"
)
"""Matches as much as possible of a JSON string without cutting an escape or a surrogate pair."""


class LongText:
    """A text in parts, which can be read any number of times."""

    def __init__(self, read: Callable[[], Iterator[str]]):
        """Take a function that returns an iterator over the parts."""
        self._read = read

    def __iter__(self) -> Iterator[str]:
        return self._read()


Text = str | LongText


def parts_of(text: Text) -> Iterator[str]:
    """Yield the parts of a text, which are short even if it is a long string."""
    if isinstance(text, str):
        yield from (text[n : n + PART_BYTES] for n in range(0, len(text), PART_BYTES))
    else:
        yield from text


def slices(text: Text, length: int) -> Iterator[str]:
    """Yield slices of `length` characters each; the last one may be shorter."""
    rest = ""
    for part in parts_of(text):
        rest += part
        whole = len(rest) - len(rest) % length
        yield from (rest[n : n + length] for n in range(0, whole, length))
        rest = rest[whole:]
    if rest:
        yield rest


def utf8_text(data: Any) -> LongText | None:
    """Return the text in a buffer of UTF-8, or None if it is something else or has a zero byte."""
    view = memoryview(data)
    spans = range(0, len(view), PART_BYTES)
    return _checked(
        lambda: codecs.iterdecode((bytes(view[n : n + PART_BYTES]) for n in spans), "utf-8")
    )


def json_text(line: bytearray, field: str) -> LongText | None:
    """Return the text in a field of a JSON object, if it is long and the line has no error.

    Only the object without its long strings is parsed as a whole.
    """
    mark = b"long text"
    while mark in line:
        mark += b"!"
    spans = [
        match.span()
        for match in _STRING.finditer(line)
        if match.end() - match.start() > PART_BYTES
    ]
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(line)]
    rest = [bytes(line[end:start]) for end, start in zip(ends, starts, strict=True)]
    marks = [b'"%b%d"' % (mark, number) for number in range(len(spans))]
    pairs = zip(rest, [*marks, b""], strict=True)
    try:
        row = DECODER.decode(b"".join(part for pair in pairs for part in pair).decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or isinstance(row, Repeated):
        return None
    names = [place[1:-1].decode() for place in marks]
    if (text := row.get(field)) not in names:
        return None
    start, end = spans[names.index(text)]
    return _checked(lambda: _unescaped(line, start + 1, end - 1))


def _unescaped(line: bytearray, start: int, stop: int) -> Iterator[str]:
    """Yield the parts of a JSON string. Raises ValueError if it is not one."""
    while start < stop:
        match = _WHOLE.match(line, start, min(start + PART_BYTES, stop))
        end = match.end() if match else start
        while start < end < stop and 0x80 <= line[end] < 0xC0:  # inside a character
            end -= 1
        if end == start:
            raise ValueError("half a surrogate pair, or an unknown escape")
        yield json.loads(b'"%b"' % line[start:end])
        start = end


def _checked(read: Callable[[], Iterator[str]]) -> LongText | None:
    try:
        return None if any("\0" in part for part in read()) else LongText(read)
    except ValueError:
        return None
