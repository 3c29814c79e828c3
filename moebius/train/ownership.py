"""One process owns a run: it alone may write into the run's folder, until it ends or is killed."""

import errno
import json
import os
import platform
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from moebius.data.lock import acquire, file_id, is_at
from moebius.errors import ConfigError

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of a file system that has no locks, such as NFS without its lock service."""
READING_SECONDS = 1.0
"""How long to wait for a new owner to write its name into the lock file."""

Report = Callable[[str], None]


class Ownership:
    """The right of this process to write into a folder, as long as this object exists.

    Other processes are refused, and told whose the folder is. This process may take the same
    folder several times. The right ends with the last object, or with the process.
    """

    def __init__(self, folder: Path, report: Report):
        """Take the folder. Raises ConfigError if another process has it, and OSError.

        `report` gets one line if the file system has no locks; the folder is then taken anyway.
        """
        self.folder = folder
        self._held = _Held.of(folder, report)

    def rename(self, folder: Path) -> None:
        """Rename the folder. Raises OSError, among others if another folder is in the way."""
        self.folder.rename(folder)
        self.folder = self._held.folder = folder


class _Held:
    """A lock that this process holds. All its `Ownership` objects of a folder share one."""

    def __init__(self, folder: Path, descriptor: int):
        self.folder = folder
        self._descriptor, self._process = descriptor, os.getpid()
        text = json.dumps(
            {
                "process": self._process,
                "host": platform.node(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            }
        )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)

    @classmethod
    def of(cls, folder: Path, report: Report) -> "_Held":
        """Return the lock of a folder, taken now unless this process has it already."""
        path = folder / ".lock"
        with suppress(OSError):
            held = _held.get(file_id(path.stat()))
            if held is not None and held._process == os.getpid():  # and not a fork of the owner
                return held

        def refuse(descriptor: int) -> None:
            raise ConfigError(f"{folder}: {_owner(path)}; wait until it ends, or stop it")

        try:
            descriptor = acquire(path, refuse)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            report(
                f"{folder}: its file system has no locks; make sure that no other process trains "
                "this run"
            )
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        held = cls(folder, descriptor)
        _held[file_id(os.fstat(descriptor))] = held
        return held

    def __del__(self) -> None:
        path = self.folder / ".lock"
        with suppress(OSError):
            # not in a process that was forked, and not in a folder that was moved
            if os.getpid() == self._process and is_at(path, self._descriptor):
                path.unlink()
        with suppress(OSError):
            os.close(self._descriptor)


_held: "weakref.WeakValueDictionary[tuple[int, int], _Held]" = weakref.WeakValueDictionary()
"""The locks of this process by device and inode of their files."""


def _owner(path: Path) -> str:
    """Return who owns a lock file and since when, in words."""
    deadline = time.monotonic() + READING_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, KeyError, TypeError):
            owner: Any = json.loads(path.read_text("utf-8"))
            return (
                f"process {owner['process']} on {owner['host']} has been training this run since "
                f"{owner['since']}"
            )
        time.sleep(0.02)
    return "another process is training this run"
