"""Signals that stop a run.

SIGINT and SIGTERM end a run after the current step. A second signal, or a step that does not end
in time, ends it immediately.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from moebius.errors import Interrupted

LAST_WORDS_SECONDS = 1.0  # for looking at the disk, which may hang, before the process ends
GRACE_SECONDS = 20.0  # schedulers kill 30 seconds after SIGTERM; the other 10 are for saving


class StopSignals:
    """A context manager that records signals. `requested` is the number of the first one.

    `last_words` returns what the message of a process that ends immediately closes with. An error
    that is raised after a signal gets a note on that signal.
    """

    def __init__(
        self,
        grace_seconds: float = GRACE_SECONDS,
        last_words: Callable[[], str] | None = None,
    ) -> None:
        self.requested: int | None = None
        self._last_words = last_words
        self._grace_seconds = grace_seconds
        self._timer: threading.Timer | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heeded()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        if self.requested and error is not None and not isinstance(error, Interrupted):
            error.add_note(f"{signal.Signals(self.requested).name} had asked the run to stop")

    def heeded(self) -> None:
        """Stop the countdown, because the step has ended and saving may take its time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            self._leave(number, "stopped at once by a second signal")
        self.requested = number
        reason = f"stopped: the step did not end within {self._grace_seconds:g} s"
        self._timer = threading.Timer(self._grace_seconds, self._leave, (number, reason))
        self._timer.daemon = True
        self._timer.start()

    def _leave(self, number: int, reason: str) -> None:
        """End the process immediately.

        This does not wait for a compiler, the device, or a checkpoint that is being written; the
        previous checkpoint stays.
        """
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        words = [reason] if self._last_words is None else [reason, _in_time(self._last_words)]
        os.write(2, f"{show_cursor}\nmoebius: {'; '.join(words)}\n".encode())
        os._exit(128 + number)


def _in_time(last_words: Callable[[], str]) -> str:
    """Return the last words, unless finding them takes too long."""
    words: list[str] = []
    thread = threading.Thread(target=lambda: words.append(last_words()), daemon=True)
    thread.start()
    thread.join(LAST_WORDS_SECONDS)
    return words[0] if words else "the disk does not answer"
