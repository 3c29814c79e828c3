"""Hash the contents of files, and remember that and what the files are until they change.

Size and modification time do not show every change: `cp -p`, `rsync -t` and `touch` set the time.
The time of the last change of state (ctime) cannot be set, so what is remembered is true as long
as it, the size, the modification time and the file's number are the same.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from moebius.data.formats import READING_VERSION, Format, SourceFile, State

RECORDS = ".hashes"
"""Folder of the cache with the hashes of the files of each source."""
RECENT_NS = 3 * 10**9
"""Age of a change below which the hash is not remembered, because another change might get the
same time stamp. Git calls such a file racily clean."""
HASH, FORMAT = 5, 6
"""Places in the entry of a file in the record, after its state. The second has the number of its
format in the record's list of formats."""
BLOCK_BYTES = 2**20
"""Number of bytes that are read and hashed at a time, into the same memory."""
SMALL_BYTES = 2**16
"""Number of bytes that are read first, because most files of a large folder are small."""
FILES_AT_ONCE = 64
"""Number of files that a thread hashes before it asks for more."""


class Remembered:
    """What is remembered of the files of a source, in the cache under the source's name."""

    def __init__(self, cache: Path, source: str, as_text: bool = False):
        """Read what is remembered. `as_text` is whether rows are read as plain text."""
        name = hashlib.sha256(source.encode()).hexdigest()[:20]
        self._record = cache / RECORDS / f"{name}.json"
        rules = [READING_VERSION, as_text]
        self._folder = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118
        self._rules, self._known, self._formats = rules, *_read(self._record, rules)
        self._is_complete = True

    def format(self, path: str, state: State) -> Format | None:
        """Return what a file is, or None if that is not known."""
        entry = self._entry(path, state)
        format_ = self._formats.get(entry[FORMAT]) if len(entry) > FORMAT else None
        self._is_complete = self._is_complete and format_ is not None
        return format_

    def content_hashes(
        self, files: Sequence[SourceFile], others: Sequence[SourceFile] = ()
    ) -> list[str]:
        """Return the SHA-256 of each file's contents.

        They are remembered together with the formats, also those of `others`, if the cache can be
        written. Raises OSError for a file that cannot be read.
        """
        now = time.time_ns()
        entries = (self._entry(file.location, file.state) for file in files)
        hashes = [str(entry[HASH]) if len(entry) > HASH else "" for entry in entries]
        unknown = [file.location for file, hash_ in zip(files, hashes, strict=True) if not hash_]
        new = iter(_all_sha256(unknown))
        hashes = [hash_ or next(new) for hash_ in hashes]
        if unknown or not self._is_complete or len(self._known) != len(files) + len(others):
            pairs = chain(zip(files, hashes, strict=True), zip(others, repeat(""), strict=False))
            numbers: dict[Format, int] = {}
            kept = {
                self._name(file.location): [
                    *file.state,
                    hash_,
                    numbers.setdefault(file.format, len(numbers)),
                ]
                for file, hash_ in pairs
                if abs(now - file.state[-1]) > RECENT_NS
            }
            if kept:
                values = {"rules": self._rules, "formats": list(numbers), "files": kept}
                with suppress(OSError):
                    _write(self._record, values)
        return hashes

    def _entry(self, path: str, state: State) -> list[Any]:
        """Return what is remembered of a file; nothing if it has changed."""
        entry = self._known.get(self._name(path))
        return entry if type(entry) is list and entry[:HASH] == [*state] else []

    def _name(self, path: str) -> str:
        return path if path.startswith("/") else self._folder + path


def _all_sha256(files: Sequence[str]) -> list[str]:
    # hashlib works outside of Python's global lock, so threads use all cores.
    is_stopped = threading.Event()
    groups = [files[n : n + FILES_AT_ONCE] for n in range(0, len(files), FILES_AT_ONCE)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        try:
            hashes = threads.map(
                lambda group: [_sha256(file, is_stopped) for file in group], groups
            )
            return list(chain.from_iterable(hashes))
        finally:
            is_stopped.set()  # a signal need not wait for the end of a file of many gigabytes


def _sha256(file: str, is_stopped: threading.Event) -> str:
    """Return the hash of a file's contents, or of their first part if that is stopped."""
    with open(file, "rb", buffering=0) as opened:  # noqa: PTH123
        hash_ = hashlib.sha256(opened.read(SMALL_BYTES))
        if more := opened.read(SMALL_BYTES):  # a network's file system may read less than asked
            hash_.update(more)
            block = memoryview(bytearray(BLOCK_BYTES))
            while not is_stopped.is_set() and (length := opened.readinto(block)):
                hash_.update(block[:length])
    return hash_.hexdigest()


def _read(record: Path, rules: list[Any]) -> tuple[dict[str, Any], dict[int, Format]]:
    """Return the entries of the files, and the formats by number if they follow from the rules."""
    try:
        values = json.loads(record.read_bytes())
        formats: list[Any] = values["formats"] if values["rules"] == rules else []
        return dict(values["files"]), dict(enumerate(map(Format.from_json, formats)))
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def _write(record: Path, values: dict[str, Any]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_name(f"{record.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(values), encoding="utf-8")
    partial.replace(record)
