"""Decide what a file is, by its name and its first bytes, and open it without its compression.

This is the only place that knows formats by name, so a file is the same thing in a folder, a glob,
a list of sources, a download or alone.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, cast

from moebius.data.compression import COMPRESSIONS, compression_of, decompressed, is_damage
from moebius.data.row_syntax import BYTE_ORDER_MARK, CSV, JSON_LINES, row_kind

TEXT, PARQUET, ARROW = "plain text", "Parquet", "Arrow"
READING_VERSION = 2
"""Version of the rules by which files become documents. What was prepared by other rules is not
used any more."""
SNIFFED_BYTES = 8192
"""Bytes at the start of a file in which a zero byte means that the file is binary."""
HEAD_BYTES = 2**16
"""Bytes at the start of a file that are read to find out what it is."""
BUFFER_BYTES = 2**18
"""Bytes that are read from the disk at once."""
MOST_LAYERS = 3
"""Most compressions, one around the other, that are removed."""

_SUFFIXES = {
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".jsonlines": JSON_LINES,
    ".csv": CSV,
    ".tsv": CSV,
    ".tab": CSV,
    ".parquet": PARQUET,
    ".pq": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
}
_OTHERS = {
    b"%PDF-": "a PDF",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF87a": "an image",
    b"GIF89a": "an image",
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x04\x22\x4d\x18": "compressed with lz4, which is not read",
    b"\x1f\x9d": "compressed with compress (.Z), which is not read",
    b"\x5d\0\0": "compressed with lzma, which is not read",
    b"LZIP\x01": "compressed with lzip, which is not read",
    b"SQLite format 3\0": "a database",
    b"Obj\x01": "an Avro file",
    b"FEA1": "a Feather file of version 1",
    b"\x80\x02}": "a pickle",
    b"\x80\x04\x95": "a pickle",
    b"\x80\x05\x95": "a pickle",
    b"\x7fELF": "a program",
}
"""What files that hold no text begin with. They are recognized so that the user is told what they
are, and because some have no zero byte near their start."""
_MARKED_UP = {
    b"WARC/": "a web archive (WARC)",
    b"{\\rtf": "an RTF document",
    b"%!PS": "PostScript",
}
"""What files begin with that hold text between lines for programs. As plain text they are read
only if that is asked for."""
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": (
        "a pointer of Git LFS in place of the file (`git lfs pull` gets it)"
    ),
    b"/annex/objects/": "a pointer of git-annex in place of the file (`git annex get` gets it)",
}
POINTERS = tuple(_POINTERS.values())
"""Reasons for passing over a file that stands for one that was not downloaded."""
_UNMARKED = {".br": "compressed with brotli, which is not read"}
"""What files are whose first bytes do not say so, by suffix."""
_TAR_MARK = slice(257, 262)
# The mark of little-endian UTF-32 starts with that of UTF-16, so it need not be listed.
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_COPY = re.compile(
    r"~$|\.(bak|backup|old|orig|save|copy|tmp|temp|part|partial|download|crdownload|\d+)$", re.I
)
"""Matches what is put behind a file's name for a copy or an unfinished download of it."""


class Format(NamedTuple):
    """What a file is."""

    kind: str
    """`TEXT`, `JSON_LINES`, `JSON` (an array of objects, or objects one after another), `CSV`
    (also with tabs), `PARQUET` or `ARROW`. Empty if the file is passed over."""
    compressions: tuple[str, ...] = ()
    """The compressions around the contents, the outermost first."""
    reason: str = ""
    """What the file is or why else it is passed over, in a few words."""
    is_damaged: bool = False
    """Whether the file is passed over because it is damaged, which is an error."""

    @classmethod
    def from_json(cls, values: list[Any]) -> "Format":
        """Return the format that JSON made a list of. Raises ValueError and TypeError."""
        kind, compressions, *rest = values
        return cls(kind, tuple(compressions), *rest)

    @property
    def label(self) -> str:
        """The kind and the compressions in words, such as `JSON lines (gzip)`."""
        return f"{self.kind} ({', '.join(self.compressions)})" if self.compressions else self.kind


State = tuple[int, int, int, int, int]
"""The device, the number, the size, the modification time and the time of the last change of state
of a file, the times in nanoseconds."""
NO_STATE: State = (0, 0, 0, 0, 0)
"""Stands for a state that is not known. A file of this state is read from its start to its end."""


class SourceFile(NamedTuple):
    """A file of a source, and what it is."""

    location: str
    """Where it is on this machine."""
    name: str
    """What messages call it: the path, or the name of a download at its origin."""
    format: Format
    state: State

    @property
    def path(self) -> Path:
        """Where it is on this machine."""
        return Path(self.location)

    @property
    def size(self) -> int:
        """The number of bytes on the disk."""
        return self.state[2]

    @contextmanager
    def open(self) -> Iterator[BufferedReader]:
        """Open the contents, without their compression. Raises OSError.

        Reading damaged or incomplete compressed data raises an error for which `is_damage` is
        true.
        """
        with open(self.location, "rb", BUFFER_BYTES) as raw:  # noqa: PTH123
            yield decompressed(cast(BufferedReader, raw), self.format.compressions)


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name, like `Path.suffix`, which takes ten times as long."""
    last = name.rpartition("/")[2]
    start = last.rfind(".")
    return last[start:] if 0 < start < len(last) - 1 else ""


def identify(path: str | Path, name: str, as_text: bool = False) -> Format:
    """Return what a file is. Raises OSError if it cannot be read.

    `name` is the file's original name, which may differ from that of a copy. What is put behind a
    name for a copy or an unfinished download of a file (.bak, .part) is left aside. With
    `as_text`, JSON and CSV are plain text, and only compression and binary contents are looked
    for.
    """
    name = _original(name)
    compressions: tuple[str, ...] = ()
    head = b""
    for _ in range(MOST_LAYERS):
        try:
            with open(path, "rb") as raw:  # noqa: PTH123
                head = decompressed(raw, compressions).read(HEAD_BYTES)
        except Exception as error:
            if not is_damage(error):
                raise
            head = b""  # the damage is reported when the contents are read
        compression = compression_of(head)
        if not compression:
            break
        compressions += (compression,)
        suffix = suffix_of(name)
        if COMPRESSIONS.get(suffix.lower()) == compression:
            name = _original(name.removesuffix(suffix))
    suffix = suffix_of(name).lower()
    for start, what in _POINTERS.items():
        if head.startswith(start):
            return Format("", reason=what)
    if suffix in COMPRESSIONS:
        compression = COMPRESSIONS[suffix]
        reason = f"damaged or incomplete, it does not begin as {compression} does"
        return Format("", reason=reason, is_damaged=True)
    if not head and not compressions:
        return Format("", reason="empty")
    kind, reason = _kind(head, suffix, as_text)
    return Format(kind, compressions, reason)


def state_of(path: str | Path) -> State:
    """Return the state of a file. Raises OSError."""
    state = os.stat(path)  # noqa: PTH116
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _original(name: str) -> str:
    """Return the name of the file that one of this name is a copy of: `a.csv.bak` -> `a.csv`."""
    while (shorter := _COPY.sub("", name)) != name:
        name = shorter
    return name


def _kind(head: bytes, suffix: str, as_text: bool) -> tuple[str, str]:
    """Return the kind of uncompressed contents, or "" and why they are passed over."""
    if head.startswith(b"PAR1"):
        return PARQUET, ""
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return ARROW, ""
    for start, what in _OTHERS.items():
        if head.startswith(start):
            return "", what
    if head[_TAR_MARK] == b"ustar":
        return "", "a tar archive"
    if suffix in _UNMARKED:
        return "", _UNMARKED[suffix]
    if not as_text:
        for start, what in _MARKED_UP.items():
            if head.removeprefix(BYTE_ORDER_MARK).startswith(start):
                return "", what
    by_name = _SUFFIXES.get(suffix, "")
    if by_name in (PARQUET, ARROW) or (by_name and not as_text):
        return by_name, ""
    # Git's rule. UTF-16 has zero bytes too, but does not count as binary, so that the user is told
    # that it is not read.
    if b"\0" in head[:SNIFFED_BYTES] and not head.startswith(_WIDE_MARKS):
        return "", "binary"
    return (TEXT if as_text else row_kind(head, suffix, len(head) == HEAD_BYTES) or TEXT), ""
