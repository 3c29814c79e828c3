"""Print lines that may contain a user's text or file names, safely for the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from moebius.config.printable import complain, printable
from moebius.errors import ConfigError, StorageError

_failures: list[OSError] = []
"""Errors of `say` since the last `finish`. An unbuffered stdout does not remember them."""


def say(line: str) -> None:
    """Print a line on stdout, at once.

    A failure is raised later, by `finish`, so that it does not end the preparation of data or the
    building of a model halfway.
    """
    try:
        print(printable(line), flush=True)
    except OSError as error:
        _failures.append(error)


def finish() -> None:
    """Write what is still in stdout's buffer.

    Raises OSError if that fails, or if an earlier `say` failed. A closed pipe is thus an error
    before Python shuts down.
    """
    try:
        if _failures:
            first = _failures[0]
            _failures.clear()
            raise first
        if sys.stdout:  # None if it was closed before Python started
            sys.stdout.flush()
    except OSError as error:
        error.filename = "stdout"
        raise


def check_file(flag: str, file: str, suffix: str) -> None:
    """Check that a file that an option names can be written, before anything slow begins.

    Nothing is checked if `file` is empty. Raises ConfigError for a wrong suffix, and StorageError
    if there is no such folder.
    """
    if not file:
        return
    folder = Path(file).absolute().parent
    if Path(file).suffix != suffix:
        raise ConfigError(f"{flag} {file}: the file's name must end with {suffix}")
    if not folder.is_dir():
        raise StorageError(f"{flag} {file}: {folder} is not a directory")


@contextmanager
def softly(what: str, known: str = "") -> Iterator[None]:
    """Turn any error into a line on stderr, where a failure must not end the command.

    what: the failure in words, such as "no report". known: the error that the command ends with
    anyway, which is not said twice.
    """
    try:
        yield
    except Exception as error:
        if known and str(error) == known:
            return
        complain(f"{what}: {str(error) or type(error).__name__}")


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
