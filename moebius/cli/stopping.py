"""What a signal does to a command: it ends with one line and the signal's exit code.

SIGTERM and SIGHUP (the terminal was closed) are made to work like Ctrl-C, which Python turns into
an exception: files that are half written are removed, and processes that were started are ended.
The training loop handles signals itself (moebius/train/signals.py), because it saves the state.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP has ended the command.

    Like KeyboardInterrupt, it is no `Exception`, so code that handles failures lets it pass.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise `Stopped` in the with block when SIGTERM or SIGHUP comes.

    A signal that is ignored, as SIGHUP under nohup, or that a program around this one handles,
    stays as it is. Outside of the main thread, signals cannot be handled, and nothing changes.
    """
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # A terminal that is closed may send SIGHUP twice, and must not disturb the cleaning up.
    signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else _stop)
    raise Stopped(number)
