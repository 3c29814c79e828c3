"""Read a long JSON file one value at a time: an array's elements, or values one after another.

The file may have any size; only one value at a time is in memory.
"""

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

READ_BYTES = 2**18
NEAR_END = 16
"""Characters before the end of what has been read within which an error may only mean that the
rest is missing. The longest escape has 6."""


class NotJson(Exception):
    """Contents that are not JSON, or that hold a value too long to be read."""


class NotUtf8(NotJson):
    """Contents that are not UTF-8, so that they are no text either."""


class Repeated(dict[str, Any]):
    """A JSON object that names a field twice. Like `json`, it has the last value of the field."""

    repeated: list[str]
    """The names that come again, each as often as it does."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    counts = Counter(name for name, _ in pairs)
    repeated = Repeated(row)
    repeated.repeated = [name for name, count in counts.items() for _ in range(count - 1)]
    return repeated


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Decodes JSON, with a `Repeated` for each object that names a field twice."""


def json_values(opened: BufferedReader, longest: int) -> Iterator[Any]:
    """Yield the elements of an array, or all values of a file that is no array.

    `longest` is the largest number of characters in one value. Raises NotJson at the first error:
    where the next value begins after one cannot be known. Raises OSError.
    """
    reader = _Reader(opened, longest)
    is_array = reader.peek() == "["
    if is_array:
        reader.position += 1
        if reader.peek() == "]":
            return reader.end_at_bracket()
    while is_array or reader.peek():
        yield reader.value(is_array)
        if is_array:
            following = reader.peek()
            if following == "]":
                return reader.end_at_bracket()
            if following != ",":
                raise NotJson(reader.problem("no , or ] after a value"))
            reader.position += 1


class _Reader:
    """The text of a file, of which a part is in memory."""

    def __init__(self, opened: BufferedReader, longest: int):
        self._opened = opened
        self._longest = longest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._dropped = 0
        """Characters of the file before the text in memory."""
        self._is_complete = False
        self.position = 0
        """Where the next value begins in the text in memory."""

    def peek(self) -> str:
        """Move to the next character that is no space and return it, or "" at the end."""
        while True:
            while self.position < len(self._text):
                if self._text[self.position] not in " \t\r\n":
                    return self._text[self.position]
                self.position += 1
            if not self._read(READ_BYTES):
                return ""

    def value(self, is_array: bool) -> Any:
        """Return the value at the next character and move behind it."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self.position)
            except json.JSONDecodeError as error:
                may_go_on = (
                    error.msg.startswith("Unterminated string")
                    or error.pos >= len(self._text) - NEAR_END
                )
                if not may_go_on or self._is_complete:
                    raise NotJson(self.problem(error.msg, error.pos)) from None
            except (ValueError, RecursionError) as error:
                raise NotJson(self.problem(str(error))) from None
            else:
                # What seems to be the number 12 may be the beginning of 123.
                if end < len(self._text) - NEAR_END or self._is_complete:
                    self.position = end
                    return value
            length = len(self._text) - self.position
            if length > self._longest:
                raise NotJson(self.problem(f"a value of more than {self._longest:,} characters"))
            # Doubled, so that parsing a long value again and again takes time in proportion.
            self._read(max(READ_BYTES, length))

    def end_at_bracket(self) -> None:
        """Check that nothing follows the array's last bracket."""
        self.position += 1
        if self.peek():
            raise NotJson(self.problem("something follows the array"))

    def problem(self, what: str, position: int | None = None) -> str:
        """Return what is wrong, and at which character of the file."""
        place = self._dropped + (self.position if position is None else position)
        return f"character {place}: {what}"

    def _read(self, num_bytes: int) -> bool:
        """Read about `num_bytes` more and drop the text that is done with; False at the end."""
        if self._is_complete:
            return False
        data = self._opened.read(num_bytes)
        self._dropped += self.position
        try:
            more = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise NotUtf8(
                f"not UTF-8 (0x{error.object[error.start]:02x}) after character "
                f"{self._dropped + len(self._text) - self.position}"
            ) from None
        self._text, self.position = self._text[self.position :] + more, 0
        self._is_complete = not data
        return bool(data)
