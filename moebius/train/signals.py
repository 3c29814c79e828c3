"""What stops a run from outside: signals, and output that nobody can read any more.

SIGINT, SIGTERM, SIGHUP (the terminal was closed) and a closed pipe end a run after the current
step, with its state saved. A second SIGINT or SIGTERM, or a step that does not end in time, ends
it immediately.
"""

import errno
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from moebius.errors import Interrupted
from moebius.parallel.ranks import largest
from moebius.train.checkpoint_store import last_good

LAST_WORDS_SECONDS = 1.0  # for looking at the disk, which may hang, before the process ends
GRACE_SECONDS = 20.0  # schedulers kill 30 seconds after SIGTERM; the other 10 are for saving
DELIBERATE = (signal.SIGINT, signal.SIGTERM)
"""Signals that somebody sends on purpose. Only these count as a second signal, because a terminal
that is closed sends SIGHUP, often twice, and then makes writing fail, and some systems send
SIGTERM as well."""
ECHO_SECONDS = 2.0
"""Time in which torchrun passes a signal on. A scheduler sends SIGTERM to torchrun and to the
processes of the run alike, which then get it twice."""
TERMINAL_GONE = (errno.EIO, errno.ENXIO)
"""Errors of writing to a terminal that was closed."""


class StopSignals:
    """A context manager that records signals.

    `checkpoints` is the folder of the run's checkpoints, for the message of an immediate end. An
    error that is raised after a signal gets a note on that signal. Without `listens`, signals are
    left to the caller, whose run is not worth saving. Without `speaks`, an immediate end is
    silent, because another process of the run says the same.
    """

    def __init__(
        self,
        checkpoints: Path,
        grace_seconds: float = GRACE_SECONDS,
        listens: bool = True,
        speaks: bool = True,
    ) -> None:
        self._listens, self._speaks = listens, speaks
        self.requested: int | None = None
        """The number of the first signal; SIGPIPE's for output that was lost."""
        self.reason = ""
        """Why the run stops, if that is not a signal: text to put after "stopped at step N"."""
        self._checkpoints = checkpoints
        self._grace_seconds = grace_seconds
        self._deliberate_at: float | None = None  # time of the first such signal
        self._is_launched = "TORCHELASTIC_RUN_ID" in os.environ
        self._is_heeded = False
        self._timer: threading.Timer | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if not self._listens:
            return self
        # nohup starts a program with SIGHUP ignored, so that it outlives its terminal.
        outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        for number in DELIBERATE if outlives else (*DELIBERATE, signal.SIGHUP):
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

    def agree(self) -> bool:
        """Return whether this process or one of its peers was asked to stop; all of them do then.

        All processes have to call this at the same point of the training.
        """
        number = largest(self.requested or 0)
        if number and self.requested is None:
            self._request(number)
        self.requested = number or self.requested
        return bool(number)

    def heeded(self) -> None:
        """Stop the countdown, now and later: the last step has ended, and saving may take long."""
        self._is_heeded = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def output_lost(self, error: Exception) -> None:
        """Stop the run because its output cannot be written.

        A run that ignores SIGHUP goes on without output if its terminal was closed.
        """
        is_terminal_gone = isinstance(error, OSError) and error.errno in TERMINAL_GONE
        if is_terminal_gone and signal.SIGHUP not in self._previous:
            return
        if self.requested is None:
            detail = error.strerror if isinstance(error, OSError) else error
            self.reason = f", because its output could not be written ({detail})"
            self._request(signal.SIGHUP if is_terminal_gone else signal.SIGPIPE)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number in DELIBERATE:
            now = time.monotonic()
            if self._deliberate_at is None:
                self._deliberate_at = now
            elif not self._is_launched or now - self._deliberate_at > ECHO_SECONDS:
                self._leave(number, "stopped at once by a second signal")
        if self.requested is None:
            self._request(number)

    def _request(self, number: int) -> None:
        self.requested = number
        if self._is_heeded:
            return
        reason = f"stopped: the step did not end within {self._grace_seconds:g} s"
        self._timer = threading.Timer(self._grace_seconds, self._leave, (number, reason))
        self._timer.daemon = True
        self._timer.start()

    def _leave(self, number: int, reason: str) -> None:
        """End the process immediately.

        This does not wait for a compiler, the device, or a checkpoint that is being written; the
        previous checkpoint stays.
        """
        if not self._speaks:
            os._exit(128 + number)
        with suppress(Exception):  # stderr may be closed, and the process must end all the same
            # A picture may be half drawn: show the cursor and what was written, in plain text.
            sane = "\x1b[0m\x1b[?25h\x1b[?2026l" if sys.stderr.isatty() else ""
            message = f"{sane}\nmoebius: {reason}; {_kept(self._checkpoints)}\n"
            os.write(2, message.encode())
        os._exit(128 + number)


def _kept(checkpoints: Path) -> str:
    """Return in words which checkpoint there is, unless finding it takes too long."""
    words: list[str] = []
    thread = threading.Thread(target=lambda: words.append(last_good(checkpoints)), daemon=True)
    thread.start()
    thread.join(LAST_WORDS_SECONDS)
    return words[0] if words else "the disk does not answer"
