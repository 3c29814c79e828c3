"""Print lines that may contain a user's text or file names, safely for the terminal."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from moebius.config.printable import printable, printable_line

_failures: list[OSError] = []
"""Errors of `say` since the last `finish`. An unbuffered stdout does not remember them."""


def say(line: str) -> None:
    """Print a line on stdout, at once.

    A failure is not raised here, because preparing data or building a model should not end halfway
    for it, but by `finish`.
    """
    try:
        print(printable(line), flush=True)
    except OSError as error:
        _failures.append(error)


def finish() -> None:
    """Write what is still in stdout's buffer.

    Raises OSError, for what `say` could not write too. A closed pipe is thus an error before
    Python shuts down.
    """
    try:
        if _failures:
            raise _failures.pop()
        if sys.stdout:  # None if it was closed before Python started
            sys.stdout.flush()
    except OSError as error:
        error.filename = "stdout"
        raise


def complain(line: str) -> None:
    """Print a line on stderr, after the program's name, if stderr is open."""
    if sys.stderr is not None:  # print would take stdout instead
        with suppress(OSError):
            print(f"moebius: {printable_line(line)}", file=sys.stderr, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether somebody sees the stream. It is None if it was closed at the start."""
    return stream is not None and stream.isatty()


def discard_unwritable(stream: TextIO | None) -> bool:
    """Return whether the stream's buffered text cannot be written, and then discard it.

    Otherwise Python would fail to write it when it exits, with a message and exit code 120.
    """
    if stream is None:
        return False
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return True
    return False
