"""Hash the contents of files, and remember the hashes of those that have not changed.

Size and modification time do not show every change: `cp -p`, `rsync -t` and `touch` set the time.
The time of the last change of state (ctime) cannot be set, so a hash is reused as long as it, the
size, the modification time and the file's number are the same.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

RECORDS = ".hashes"
"""Folder of the cache with the hashes of the files of each source."""
RECENT_NS = 3 * 10**9
"""Age of a change below which the hash is not remembered, because another change might get the
same time stamp. Git calls such a file racily clean."""
BLOCK_BYTES = 2**22
"""Number of bytes that are read and hashed at a time."""

State = list[int]


def content_hashes(files: Sequence[Path], cache: Path, source: str) -> list[str]:
    """Return the SHA-256 of each file's contents.

    They are remembered in the cache under the name of the source, if the cache can be written.
    Raises OSError for a file that cannot be read.
    """
    record = cache / RECORDS / f"{hashlib.sha256(source.encode()).hexdigest()[:20]}.json"
    known = _read(record)
    states = [_state(file) for file in files]
    now = time.time_ns()
    is_stopped = threading.Event()

    def content_hash(file: Path, state: State) -> str:
        remembered = known.get(str(file.absolute()))
        if isinstance(remembered, list) and remembered[:-1] == state:
            return str(remembered[-1])
        return _sha256(file, is_stopped)

    # hashlib works outside of Python's global lock, so threads use all cores.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        try:
            hashes = list(threads.map(content_hash, files, states))
        finally:
            is_stopped.set()  # a signal need not wait for the end of a file of many gigabytes
    kept = {
        str(file.absolute()): [*state, hash_]
        for file, state, hash_ in zip(files, states, hashes, strict=True)
        if abs(now - state[-1]) > RECENT_NS
    }
    if kept and kept != known:
        with suppress(OSError):
            _write(record, kept)
    return hashes


def _state(file: Path) -> State:
    state = file.stat()
    return [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _sha256(file: Path, is_stopped: threading.Event) -> str:
    """Return the hash of a file's contents, or of their first part if that is stopped."""
    hash_ = hashlib.sha256()
    with file.open("rb") as opened:
        while not is_stopped.is_set() and (block := opened.read(BLOCK_BYTES)):
            hash_.update(block)
    return hash_.hexdigest()


def _read(record: Path) -> dict[str, Any]:
    try:
        values = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(record: Path, values: dict[str, list[int | str]]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_name(f"{record.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(values), encoding="utf-8")
    partial.replace(record)
