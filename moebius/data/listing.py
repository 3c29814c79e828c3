"""List the files of a folder or a glob: the same files in the same order on any machine.

Hidden files are left out. Links are followed once: to a file as if it were that file, to a folder
unless that folder is read anyway. Everything that is not listed is counted, with the reason.
"""

import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from moebius.data.tally import HIDDEN, NOT_ENTERED, READ_ELSEWHERE, UNREADABLE, Tally
from moebius.errors import StorageError

BROKEN = "broken link"
NO_FILE = "neither a file nor a folder"

FolderKey = tuple[int, int]
"""Device and number of a folder, which tell whether two paths lead to the same one."""


class Entry(NamedTuple):
    """What a walk has found: a file, or something that is not read."""

    path: str
    relative: str
    """The path below the folder where the walk began, with slashes. Entries are sorted by it."""
    reason: str
    """Why it is not read, or "" if it is a file."""


def folder_files(root: Path, tally: Tally, left_out: tuple[str, ...] = ()) -> list[str]:
    """Return all files below a folder, sorted, without those in folders of a name in `left_out`.

    What is not returned is counted in `tally`, also a folder below it that cannot be read. Raises
    StorageError if the folder itself cannot be read.
    """
    return _listed(_walk(root, left_out=left_out), tally)


def glob_files(pattern: str, tally: Tally) -> list[str]:
    """Return the files that a glob matches, sorted, each once.

    Folders that it matches but does not enter, or that cannot be read, are counted in `tally`.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        entries = [
            Entry(str(path), path.as_posix(), _reason(path)) for path in _found(parts, tally)
        ]
        return _listed(_once(entries), tally)
    start = parts.index("**")
    hidden = any(part.startswith(".") for part in parts[start:])
    bases = _found(parts[:start], tally) if start else [Path()]
    entries = [
        _named_in_full(entry, is_relative=not start)
        for base in sorted(bases)
        if base.is_dir()
        for entry in _walk(base, with_hidden=hidden)
        if _matches(tuple(entry.relative.split("/")), parts[start:]) or entry.reason == UNREADABLE
    ]
    return _listed(_once(entries), tally)


def _found(parts: Sequence[str], tally: Tally) -> list[Path]:
    """Return the paths that match a glob without **. Folders that cannot be read are counted.

    `glob.glob` passes over such folders without a word.
    """
    paths = [Path()]
    for part in parts:
        if glob.has_magic(part):
            paths = [
                folder / name
                for folder in paths
                for name in _names(folder, tally)
                if _matches((name,), (part,))
            ]
        else:
            paths = [path / part for path in paths]
    return sorted(path for path in paths if os.path.lexists(path))


def _names(folder: Path, tally: Tally) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:
        tally.pass_over(UNREADABLE, str(folder))
        return []


def _named_in_full(entry: Entry, is_relative: bool) -> Entry:
    """Return the entry with its whole path for sorting, without ./ at its beginning."""
    path = entry.relative if is_relative else entry.path
    return entry._replace(path=path, relative=path)


def fixed_part(pattern: str) -> str:
    """Return the folder that a path or a glob begins with, up to its first special character."""
    parts: list[str] = []
    for part in Path(pattern).parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts).as_posix() if parts else ""


def _listed(entries: Iterator[Entry], tally: Tally) -> list[str]:
    files = []
    for entry in sorted(entries, key=attrgetter("relative")):
        if entry.reason:
            tally.pass_over(entry.reason, entry.path)
        else:
            files.append(entry.path)
    return files


def _once(entries: list[Entry]) -> Iterator[Entry]:
    """Yield each entry once, even if links lead several matches to the same folder.

    The path without links, if it is among them, is the one that is kept.
    """
    kept: dict[tuple[str, str], Entry] = {}
    real: dict[str, str] = {}
    for entry in entries:
        folder, name = os.path.split(entry.path)
        parent = real.get(folder) or real.setdefault(folder, os.path.realpath(folder))
        key = (parent, name)
        if key not in kept or parent == os.path.abspath(folder):  # noqa: PTH100
            kept[key] = entry
    yield from kept.values()


def _walk(
    root: Path, left_out: tuple[str, ...] = (), with_hidden: bool = False
) -> Iterator[Entry]:
    """Yield everything below a folder. Links to folders come last, when all others are known."""

    unreadable: list[str] = []
    # A link to a folder above the source would bring in everything beside it.
    seen = {_key(folder) for folder in root.resolve().parents}
    top = str(root)
    queue = deque([top])

    skipped = 0 if top == "." else len(top) if top == "/" else len(top) + 1

    def below(path: str) -> str:
        return path[skipped:]

    while queue:
        start = queue.popleft()
        if start != top and _key(start) in seen:
            yield Entry(start, below(start), READ_ELSEWHERE)
            continue
        links: list[str] = []
        folders = [start]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as found:
                    inside = sorted(found, key=attrgetter("name"))
            except OSError as error:
                if folder == top:
                    raise StorageError(f"{root}: {error.strerror}") from None
                unreadable.append(folder)
                continue
            seen.add(_key(folder))
            kept: list[str] = []
            for entry in inside:
                path = entry.path.removeprefix("./") if top == "." else entry.path
                is_hidden = entry.name.startswith(".") and not with_hidden
                # The type comes with the name, so that a file needs no call of its own.
                if not _is_folder(entry):
                    is_file = entry.is_file(follow_symlinks=False)
                    reason = "" if is_file else _reason(Path(path))
                    yield Entry(path, below(path), HIDDEN if is_hidden else reason)
                elif entry.name in left_out:
                    continue
                elif is_hidden:
                    yield Entry(path, below(path), HIDDEN)
                elif entry.is_symlink():
                    links.append(path)
                elif _key(path) in seen:
                    yield Entry(path, below(path), READ_ELSEWHERE)
                else:
                    kept.append(path)
            folders += reversed(kept)
        queue.extend(sorted(links))
    for folder in unreadable:
        yield Entry(folder, below(folder), UNREADABLE)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _reason(path: Path) -> str:
    """Return why a path is not read, or "" if it is a file."""
    if path.is_file():
        return ""
    if path.is_dir():
        return NOT_ENTERED
    return BROKEN if path.is_symlink() and not path.exists() else NO_FILE


def _key(folder: str | Path) -> FolderKey:
    try:
        state = os.stat(folder)  # noqa: PTH116
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from None
    return state.st_dev, state.st_ino


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Return whether the parts of a path match those of a glob, as glob.glob understands it."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        shorter = bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern)
        return _matches(parts, pattern[1:]) or shorter
    return (
        bool(parts)
        and parts[0].startswith(".") <= pattern[0].startswith(".")
        and fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:])
    )
