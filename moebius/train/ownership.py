"""One process owns a run: it alone may write into the run's folder, until it ends or is killed.

Two locks say so: that of a file, which names the owner, and that of the folder itself, which stays
if somebody deletes the file. The owner checks both before it writes, because the folder may have
been moved, deleted or replaced since.
"""

import errno
import fcntl
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
from moebius.errors import ConfigError, LostRunError
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Event, Sample

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of a file system that has no locks, such as NFS without its lock service."""
NO_FOLDER_LOCKS = (*UNSUPPORTED, errno.EBADF, errno.EISDIR)
"""Errors of a file system that has no locks on folders, such as NFS."""
LOOKING_SECONDS = 0.2
"""How long to wait for a lock file that another process only looks at, as `is_owned` does."""
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

    def check(self) -> None:
        """Raise LostRunError if the folder, or its lock, is no longer what was taken."""
        self._held.check(self.folder)


def is_owned(folder: Path) -> bool:
    """Return whether another process trains the run in that folder. Nothing is written.

    The lock is shared for a moment, because no system call asks for locks of this kind.
    """
    with suppress(OSError):
        held = _held.get(file_id(folder.stat()))
        if held is not None and held._process == os.getpid():
            return False
        with (folder / ".lock").open("rb") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


class OwnedOnly:
    """A sink that writes nothing, and stops a run before it writes into what it does not own.

    It comes before all others. Each method raises LostRunError as `check` does.
    """

    def __init__(self, check: Callable[[], None]):
        self._check = check

    def open(self, run: Path, step: int) -> None:
        """Check before the files are opened."""
        self._check()

    def write(self, metrics: StepMetrics) -> None:
        """Check before a step is written."""
        self._check()

    def event(self, event: Event) -> None:
        """Check before an event is written."""
        self._check()

    def sample(self, sample: Sample) -> None:
        """Check before a text is written."""
        self._check()

    def rewind(self, step: int) -> None:
        """Check before the files are written anew."""
        self._check()

    def close(self) -> None:
        """Do nothing, because what is open stays in the folder where it was."""


class _Held:
    """The locks that this process holds. All its `Ownership` objects of a folder share them."""

    def __init__(self, folder: Path, directory: int, descriptor: int):
        self.folder = folder
        self._directory, self._descriptor, self._process = directory, descriptor, os.getpid()
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
            held = _held.get(file_id(folder.stat()))
            if held is not None and held._process == os.getpid():  # and not a fork of the owner
                held.folder = folder
                return held

        def refuse(descriptor: int) -> None:
            raise ConfigError(f"{folder}: {_owner(path)}; wait until it ends, or stop it")

        def refuse_later(descriptor: int) -> None:
            deadline = time.monotonic() + LOOKING_SECONDS
            while time.monotonic() < deadline:
                time.sleep(0.01)
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
            refuse(descriptor)

        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock_folder(directory, refuse)
            held = cls(folder, directory, cls._taken(folder, refuse_later, report))
        except BaseException:
            os.close(directory)
            raise
        _held[file_id(os.fstat(directory))] = held
        return held

    @staticmethod
    def _taken(folder: Path, refuse: Callable[[int], None], report: Report) -> int:
        """Return the descriptor of the folder's lock file, locked unless that is impossible."""
        path = folder / ".lock"
        try:
            return acquire(path, refuse)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            report(
                f"{folder}: its file system has no locks; make sure that no other process trains "
                "this run"
            )
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def check(self, folder: Path) -> None:
        """Raise LostRunError if the path, or the lock in it, is no longer what was taken."""
        path = folder / ".lock"
        with suppress(OSError):
            if is_at(path, self._descriptor):
                return
        place = _place(self._directory)
        is_in_the_way = os.path.lexists(folder)
        if _is_folder(folder, self._directory):
            what = "replaced" if os.path.lexists(path) else "deleted"
            lost = f"{path}: {what} during the training, so that another process may train it, too"
        elif place:
            instead = ", and something else was put in its place" if is_in_the_way else ""
            lost = f"{folder}: moved to {place} during the training{instead}"
        else:
            what = "replaced" if is_in_the_way else "deleted"
            lost = f"{folder}: {what} during the training"
        remedy = f"; `moebius resume {place}` goes on from its last checkpoint" if place else ""
        raise LostRunError(f"{lost}; stopped without writing anything more{remedy}")

    def __del__(self) -> None:
        path = self.folder / ".lock"
        with suppress(OSError):
            # not in a process that was forked, and not in a folder that was moved
            if os.getpid() == self._process and is_at(path, self._descriptor):
                path.unlink()
        for descriptor in (self._descriptor, self._directory):
            with suppress(OSError):
                os.close(descriptor)


_held: "weakref.WeakValueDictionary[tuple[int, int], _Held]" = weakref.WeakValueDictionary()
"""The locks of this process by device and inode of their folders."""


def _lock_folder(directory: int, refuse: Callable[[int], None]) -> None:
    """Lock an open folder, unless its file system cannot. `refuse` raises if it is taken."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        refuse(directory)
    except OSError as error:
        if error.errno not in NO_FOLDER_LOCKS:
            raise


def _is_folder(folder: Path, directory: int) -> bool:
    """Return whether the open folder is still the one at that path."""
    try:
        return file_id(folder.stat()) == file_id(os.fstat(directory))
    except OSError:
        return False


def _place(directory: int) -> Path | None:
    """Return where an open folder is now; None if it was deleted or the system does not say."""
    try:
        place = Path(f"/proc/self/fd/{directory}").readlink()
    except OSError:
        return None
    return place if _is_folder(place, directory) else None


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
