"""The parts in which a source is read, before its documents are taken apart."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from moebius.data.formats import Format
from moebius.data.long_text import LongText
from moebius.errors import StorageError

DOCUMENT, TEXT_PIECE, LINES = "document", "piece of a text file", "JSON lines"
WHOLE_FILE = "whole file"
LATER_PART = "part of a long document"
REFUSAL, NOT_TEXT = "refusal", "refusal of what is not text"
UNCOUNTED = -1
"""Stands for a number of lines that is only counted if a message needs it."""
COUNTED_BYTES = 2**20
"""Bytes in which line ends are counted at once."""


class FilePart(NamedTuple):
    """A part of a file, which is read by the process that takes its documents apart."""

    location: str
    """Where the file is on this machine."""
    start: int
    stop: int
    format: Format = Format("")
    """What the file is; only used for a whole file."""

    def read(self) -> bytes:
        """Return the contents. Raises StorageError if the system does not let them be read."""
        try:
            with open(self.location, "rb") as file:  # noqa: PTH123
                file.seek(self.start)
                return file.read(self.stop - self.start)
        except OSError as error:
            raise unreadable(self.location, error) from None

    def count_lines(self) -> int:
        """Return the number of line ends. Raises StorageError like `read`."""
        spans = range(self.start, self.stop, COUNTED_BYTES)
        parts = (self._replace(start=n, stop=min(n + COUNTED_BYTES, self.stop)) for n in spans)
        return sum(part.read().count(b"\n") for part in parts)


class Chunk(NamedTuple):
    """A part of a source: one document, or whole lines with any number of documents."""

    syntax: str
    """How the documents are found: `DOCUMENT` (UTF-8 of one document that was found before),
    `TEXT_PIECE` (one document that may not be UTF-8), `LINES` or `WHOLE_FILE` (as the file's
    format says). `LATER_PART` is what goes on with the document before it; `REFUSAL` and
    `NOT_TEXT` stand in for documents that could not be read."""
    data: bytes | bytearray | LongText | FilePart
    """The contents, or where they are; a long text only for a `DOCUMENT`."""
    origin: str
    """The name of the file, for messages, or the reason of a refusal."""
    offset: int = 0
    """Bytes of the file before the contents."""
    line: int = 0
    """Lines of the file before the contents, or `UNCOUNTED`."""
    num_refused: int = 1
    """Number of documents that a refusal stands in for."""

    @property
    def raw(self) -> bytes | bytearray:
        """The contents, which are no long text. Raises StorageError if they cannot be read."""
        assert not isinstance(self.data, LongText)
        return self.data.read() if isinstance(self.data, FilePart) else self.data

    @property
    def num_bytes(self) -> int:
        """The number of bytes of the contents, which are no long text."""
        assert not isinstance(self.data, LongText)
        if isinstance(self.data, FilePart):
            return self.data.stop - self.data.start
        return len(self.data)

    def uncounted(self) -> "Chunk":
        """Return the chunk without a line number, if no reason will be shown that needs one."""
        return self._replace(line=0) if self.line == UNCOUNTED else self

    def lines_before(self) -> int:
        """Return the lines of the file before the contents. Raises StorageError like `raw`."""
        if self.line != UNCOUNTED:
            return self.line
        assert isinstance(self.data, FilePart)
        return self.data._replace(start=0, stop=self.data.start).count_lines()


class Place:
    """The place of a line in a file, in words only if a message needs them."""

    __slots__ = ("_before", "_name", "_number")

    def __init__(self, name: str, before: Callable[[], int], number: int):
        """Take the file's name, the lines before some part of it, and the line's number there."""
        self._name, self._before, self._number = name, before, number

    def __str__(self) -> str:
        return f"{self._name}:{self._before() + self._number}"


Origin = str | Place
"""Where a document comes from."""


def unreadable(location: str | Path, error: OSError) -> StorageError:
    """Return the error for a file that the system does not let be read."""
    return StorageError(f"{Path(location)}: {error.strerror or error}")
