"""Read a file of JSON lines while another process writes it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from moebius.data.lock import file_id
from moebius.observe.line_file import Line, parsed

MOST_BYTES = 4_000_000
"""How much is read at a time. Of a file that has grown by more, the end is read."""
COMPARED = 256
"""Bytes before the offset that tell whether the file is still the one that was read."""


@dataclass(frozen=True)
class Grown:
    """What has been appended to a file."""

    lines: list[Line]
    num_damaged: int
    is_new: bool
    """Whether the lines are all that is known of the file, because lines that were read before
    are no longer in it: it was cut, replaced or removed."""


class GrowingFile:
    """The complete lines of a file, as they come. A line that is half written comes later."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES):
        self.path, self._most_bytes = path, most_bytes
        self._offset, self._before = 0, b""
        self._id: object = None

    def read(self) -> Grown:
        """Return the lines since the last call; at first, those at the end of the file.

        A file that is not there has none. Raises OSError for one that cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                is_new = self._id != file_id(stat) or not self._continues(file, stat.st_size)
                if is_new:
                    self._offset, self._before, self._id = 0, b"", file_id(stat)
                texts = self._texts(file, stat.st_size)
        except FileNotFoundError:
            is_new, self._id = self._id is not None, None
            return Grown([], 0, is_new)
        lines = [line for text in texts if (line := parsed(text, self.path.name)) is not None]
        return Grown(lines, len(texts) - len(lines), is_new)

    def _continues(self, file: BinaryIO, size: int) -> bool:
        """Return whether what was read last is still there."""
        if size < self._offset:
            return False
        file.seek(self._offset - len(self._before))
        return file.read(len(self._before)) == self._before

    def _texts(self, file: BinaryIO, size: int) -> list[bytes]:
        """Return the complete lines after the offset, and move it behind them."""
        skips = size - self._offset > self._most_bytes
        start = max(self._offset, size - self._most_bytes)
        file.seek(start)
        data = file.read(size - start)
        end = data.rfind(b"\n") + 1
        data = data[:end]
        self._offset = start + end
        self._before = (self._before + data)[-COMPARED:] if not skips else data[-COMPARED:]
        if skips:  # begins in the middle of a line
            data = data[data.find(b"\n") + 1 :]
        return [text for text in data.split(b"\n") if text.strip()]
