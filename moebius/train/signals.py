"""Signals that stop a run.

SIGINT and SIGTERM end a run after the current step. A second signal, or a step that does not end
in time, ends it immediately.
"""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

GRACE_SECONDS = 20.0  # schedulers kill 30 seconds after SIGTERM; the other 10 are for saving


class StopSignals:
    """A context manager that records signals. `requested` is the number of the first one."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self.requested: int | None = None
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

    def heeded(self) -> None:
        """Stop the countdown, because the step has ended and saving may take its time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            _leave(number, "stopped at once by a second signal")
        self.requested = number
        reason = f"stopped: the step did not end within {self._grace_seconds:g} s"
        self._timer = threading.Timer(self._grace_seconds, _leave, (number, reason))
        self._timer.daemon = True
        self._timer.start()


def _leave(number: int, reason: str) -> None:
    """End the process immediately.

    This does not wait for a compiler, the device, or a checkpoint that is being written; the
    previous checkpoint stays.
    """
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    message = f"{show_cursor}\nmoebius: {reason}; the last checkpoint is unharmed\n"
    os.write(2, message.encode())
    os._exit(128 + number)
