"""A lock file that lets one process at a time work on something while the others wait.

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
    descriptor = _acquire(path, report)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, report: Callable[[str], None]) -> int:
    """Return the descriptor of the locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(f"waiting for another process that is working on the same data ({path})")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The previous owner may have removed the file, and a lock on a removed file excludes
            # nobody.
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
