"""Write to a terminal or a pipe that may be closed at any time.

Work that takes hours must not end because nobody reads its output any more.
"""

from collections.abc import Callable
from typing import IO, Any


class Output:
    """A text stream, such as stdout, that never raises an error.

    The first failure is reported to a function; from then on, all text is discarded.
    """

    def __init__(self, stream: IO[str]):
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._failure: Exception | None = None
        self._report: Callable[[Exception], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """Return whether the stream was a terminal at the start.

        A terminal that was closed is none any more, so that rich would stop to draw on it, and
        nobody would notice.
        """
        return self._is_terminal

    def when_lost(self, report: Callable[[Exception], None]) -> None:
        """Call `report` with the error that ends the output, now if that has already happened.

        It may be called in another thread, because progress bars are drawn in one.
        """
        self._report = report
        if self._failure is not None:
            report(self._failure)

    def write(self, text: str) -> int:
        """Write the text, with escapes for characters that the stream cannot encode."""
        self._try(lambda: self._stream.write(self._encodable(text)))
        return len(text)

    def flush(self) -> None:
        """Send what was written to the terminal, file or pipe."""
        self._try(self._stream.flush)

    def _encodable(self, text: str) -> str:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"  # not given in memory
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def _try(self, act: Callable[[], object]) -> None:
        if self._failure is not None:
            return
        try:
            act()
        except BlockingIOError:  # full at the moment, and set to fail instead of to wait
            return
        except (OSError, ValueError) as error:  # ValueError if closed in this process
            self._failure = error
            if self._report is not None:
                self._report(error)
