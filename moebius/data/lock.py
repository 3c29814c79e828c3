"""One process at a time; the others wait, and a killed one holds nothing up."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file at `path`, made with its folder if need be, removed after. Says if it has to wait. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = _locked(path, report)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(number)


def _locked(path: Path, report: Callable[[str], None]) -> int:
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(f"another process is at work on this ({path}); waiting for it")
                fcntl.flock(number, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(number).st_ino:
                return number  # and not of a file that its owner has removed meanwhile
        except BaseException:
            os.close(number)
            raise
        os.close(number)
