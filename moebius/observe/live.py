"""A picture on a terminal that is kept up to date by a thread, with a log that scrolls above it.

The thread writes everything. Training only hands over what there is to show, and goes on even if
the terminal does not take it, as after Ctrl-S.
"""

import io
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console

from moebius.config.printable import printable
from moebius.data.output import Output
from moebius.observe.paint import Paint, Row
from moebius.observe.screen import Screen

FRAME_SECONDS = 0.25
"""Time between two pictures at least."""
PATIENCE_SECONDS = 2.0
"""How long to wait at the end for a terminal that does not take what is written."""
_COLORS = re.compile(r"\x1b\[[0-9;]*m")

Draw = Callable[[int, int], list[Row]]
"""Returns a picture as rows, given the columns and the rows of the terminal."""


def can_draw(console: Console, output: Output) -> bool:
    """Return whether a picture can be drawn again and again.

    rich calls a pipe a terminal where FORCE_COLOR is set, as in many CI systems.
    """
    return output.isatty() and console.is_terminal and not console.is_dumb_terminal


class Live:
    """The picture, the lines above it, and the thread that writes them."""

    def __init__(
        self, draw: Draw, version: Callable[[], object], console: Console, output: Output
    ):
        """`version` is another value whenever much of the picture has changed."""
        self._draw, self._version = draw, version
        self._console, self._output = console, output
        self._paint = Paint(console)
        self._screen = Screen(self._write)
        self._lines: deque[str] = deque()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure = ""
        self._last: object = None
        self._before: list[tuple[Row, str]] = []
        """The rows of the last picture, and what they are as text."""
        self._redirected: list[tuple[str, TextIO, _Lines]] = []
        self._handlers: list[tuple[logging.StreamHandler[Any], TextIO]] = []

    def start(self) -> None:
        """Begin to draw, and print above the picture whatever Python writes to the terminal."""
        self._redirect()
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Print a line above the picture, soon."""
        self._lines.append(printable(line))

    def stop(self) -> None:
        """Print the lines that are left, remove the picture, and leave the terminal as it was."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join(PATIENCE_SECONDS)
        is_stuck, self._thread = self._thread.is_alive(), None
        self._restore()
        if not is_stuck:
            self._screen.erase(self._taken())

    def refresh(self) -> None:
        """Draw at once. A failure ends the drawing and is said once; the lines go on."""
        if not self._failure:
            try:
                self._refresh()
                return
            except Exception as error:  # a picture must never end a training
                self._failure = f"the live view has failed ({type(error).__name__}: {error})"
                self.say(f"moebius: {self._failure}; the log goes on")
        if lines := self._taken():
            self._screen.erase(lines)

    def _refresh(self) -> None:
        width, height = self._console.size
        version = (self._version(), width, height)
        # The last row is for the cursor, and for what others write: ^C, or a shell's prompt.
        rows = [*self._painted(self._draw(width, height - 1)), ""]
        is_whole, self._last = version != self._last, version
        self._screen.draw(rows, (width, height), self._taken(), is_whole)

    def _painted(self, rows: Sequence[Row]) -> list[str]:
        """Return rows as text. One that is the same object as before has the same text."""
        before = [*self._before, *[None] * len(rows)]
        painted: list[str] = []
        for row, known in zip(rows, before, strict=False):
            if known is not None and known[0] is row:
                painted.append(known[1])
            else:
                painted.append(self._paint.text(row))
        self._before = list(zip(rows, painted, strict=True))
        return painted

    def _run(self) -> None:
        while True:
            start = time.monotonic()
            self.refresh()
            used = time.monotonic() - start
            if self._ended.wait(max(FRAME_SECONDS - used, FRAME_SECONDS / 5)):
                return

    def _taken(self) -> list[str]:
        """Return the lines that wait to be printed, which then wait no longer."""
        taken: list[str] = []
        with suppress(IndexError):
            while True:
                taken.append(self._lines.popleft())
        return taken

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()

    def _redirect(self) -> None:
        """Take what Python code prints, such as warnings: it would tear the picture."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                lines = _Lines(stream, self.say)
                self._redirected.append((name, stream, lines))
                setattr(sys, name, lines)
        streams = {id(stream): lines for _, stream, lines in self._redirected}
        known = [logging.root, *logging.root.manager.loggerDict.values()]
        loggers = [each for each in known if isinstance(each, logging.Logger)]
        for handler in {each for logger in loggers for each in logger.handlers}:
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in streams:
                self._handlers.append((handler, handler.stream))
                handler.setStream(streams[id(handler.stream)])

    def _restore(self) -> None:
        for name, stream, lines in self._redirected:
            lines.finish()
            if getattr(sys, name) is lines:
                setattr(sys, name, stream)
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._redirected, self._handlers = [], []


class _Lines(io.TextIOBase):
    """Takes the place of stdout or stderr, and passes on each line that is written."""

    def __init__(self, stream: TextIO, say: Callable[[str], None]):
        self._stream, self._say, self._text = stream, say, ""

    def write(self, text: str) -> int:
        """Pass on the lines that are complete."""
        *lines, self._text = (self._text + text).split("\n")
        for line in lines:
            self._pass_on(line)
        return len(text)

    def finish(self) -> None:
        """Pass on a line that was not completed."""
        if self._text:
            self._pass_on(self._text)
        self._text = ""

    def isatty(self) -> bool:
        """Return that this is a terminal."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the terminal."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoding of the terminal."""
        return self._stream.encoding

    def _pass_on(self, line: str) -> None:
        # Of a bar that is drawn over and over in one line, only the latest state is a line.
        self._say(_COLORS.sub("", line.rstrip("\r").rpartition("\r")[2]))
