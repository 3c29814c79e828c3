"""A lock file that lets one process at a time work on something.

The lock belongs to the open file, so a process that is killed releases it.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive_lock(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file at `path` inside the with block, waiting for it if necessary.

    The file and its folder are created if they do not exist, and the file is removed afterwards.
    `report` gets one line if another process has the lock. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def wait(descriptor: int) -> None:
        report(f"waiting for another process that is working on the same data ({path})")
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    descriptor = acquire(path, wait)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def acquire(path: Path, if_taken: Callable[[int], None]) -> int:
    """Return the descriptor of the locked file.

    If another process has the lock, `if_taken` is called with the open file; it waits for the lock
    or raises an error.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if_taken(descriptor)
            # The previous owner may have removed the file, and a lock on a removed file excludes
            # nobody.
            if is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether the open file is still the one at `path`."""
    try:
        return file_id(path.stat()) == file_id(os.fstat(descriptor))
    except FileNotFoundError:
        return False


def file_id(status: os.stat_result) -> tuple[int, int]:
    """Return the device and the inode of a file, which no other file has."""
    return status.st_dev, status.st_ino
