"""Files of JSON lines, each line with its step: read, and cut at a step.

A long run has gigabytes of them, so they are cut at an offset, a piece in memory at a time.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moebius.observe.metrics import is_metrics
from moebius.observe.sink import REWOUND_TO

METRICS = "metrics.jsonl"
DAMAGED = ".damaged"  # suffix of the file that keeps the damaged lines
PIECE = 1 << 18  # bytes that are in memory at a time, besides a longer line
MOST_NAMES = 5  # numbers of damaged lines that are named
_PLAIN = re.compile(rb'\{"step": (\d{1,15}), "tokens": \d+, "loss": (?:-?\d|null)')
"""How a line of metrics.jsonl begins."""
_OF_NUMBERS = b"0123456789.-+e "
"""What numbers consist of. The rest of a line is its outline, which few lines differ in."""
MOST_OUTLINES = 256
"""Number of outlines that are remembered."""
Line = dict[str, Any]
Span = list[int]
"""The offsets of a part of a file: its first byte, and the one after its last byte."""


def read_lines(path: Path) -> list[Line]:
    """Return all complete lines of a file, without those that are damaged. Raises OSError."""
    return [line for line in each_line(path) if line is not None]


def each_line(path: Path) -> Iterator[Line | None]:
    """Yield the lines of a file, with None for each that is damaged. Raises OSError.

    Only a piece of the file is in memory at a time.
    """
    with path.open("rb") as file:
        for piece in _pieces(file):
            yield from (parsed(piece.text(*span), path.name) for span in piece.spans())


def last_line(path: Path) -> Line | None:
    """Return the last complete line of a file, or None if there is none. Raises OSError."""
    with path.open("rb") as file:
        size, length = os.fstat(file.fileno()).st_size, PIECE
        while True:
            file.seek(max(0, size - length))
            texts = file.read().split(b"\n")
            whole = texts if length >= size else texts[1:]
            for text in reversed(whole):
                if (line := parsed(text, path.name)) is not None:
                    return line
            if length >= size:
                return None
            length *= 2


def parsed(text: bytes, name: str) -> Line | None:
    """Return a line of the file of that name as an object with a step, or None if it is damaged.

    A line of metrics must also be one that `StepMetrics` could have written.
    """
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    if not isinstance(line, dict):
        return None
    steps = [line.get("step"), line.get(REWOUND_TO, 0)]
    if not all(type(step) is int for step in steps):
        return None
    return line if name != METRICS or is_metrics(line) else None


def cut(path: Path, step: int, report: Callable[[str], None]) -> None:
    """Remove from a file the lines of steps after `step`, and those that are damaged.

    A roll-back to `step` or before stays, with the lines that led to it, because it says why text
    was left out. Damaged lines are moved to a file of their own, and `report` gets a line about
    them; the beginning of a line at the end of the file, which a crash cut off, is just removed.
    Raises OSError.
    """
    if not path.exists():
        return
    found = _scanned(path, step)
    if found.damaged:
        beside = path.with_name(path.name + DAMAGED)
        _copy(path, found.damaged, beside, "ab", ending=b"\n")
        num_damaged = len(found.damaged)
        number = f"{num_damaged} damaged line{'s' if num_damaged > 1 else ''}"
        report(f"{path}: {number} moved to {beside.name} ({_named(found.damaged_lines)})")
    removed = sorted([*found.later, *found.damaged, *found.blank])
    if removed and _is_end(removed, found.size):
        os.truncate(path, removed[0][0])
    elif removed:
        partial = path.with_suffix(".jsonl.partial")
        _copy(path, _others(removed, found.size), partial, "wb")
        partial.replace(path)
    if found.lacks_newline:
        with path.open("ab") as file:
            file.write(b"\n")


def append_after(path: Path, step: int, line: Line) -> None:
    """Append a line to a file that has no other writer, without its lines of steps after `step`.

    Damaged lines are moved aside as `cut` says. Raises OSError.
    """
    cut(path, step, lambda _: None)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def copy_later(path: Path, step: int, to: Path) -> bool:
    """Copy the lines that `cut` would remove as later ones, if any, and say if there are any."""
    later = _scanned(path, step).later if path.exists() else []
    if later:
        _copy(path, later, to, "wb")
    return bool(later)


@dataclass
class _Scan:
    """The parts of a file that are not kept."""

    later: list[Span] = field(default_factory=list)
    """Lines of steps that are trained again."""
    damaged: list[Span] = field(default_factory=list)
    blank: list[Span] = field(default_factory=list)
    """Empty lines, and the beginning of a last line that was cut off."""
    damaged_lines: list[int] = field(default_factory=list)
    """Numbers of the damaged lines, from 1."""
    size: int = 0
    lacks_newline: bool = False
    """Whether the last line is whole and kept, but for its newline."""


def _scanned(path: Path, step: int) -> _Scan:
    """Return what `cut` does not keep.

    A line of metrics.jsonl that differs in its digits alone from one that was parsed is taken as
    whole, because parsing all of them takes ten times as long. Numbers that are none, like 1..2,
    are left to those who read the line.
    """
    found = _Scan()
    outlines: set[bytes] = set()
    num_lines = 0
    with path.open("rb") as file:
        for piece in _pieces(file):
            for start, end in piece.spans():
                num_lines += 1
                text = piece.text(start, end)
                offsets = (piece.offset + start, piece.offset + end + 1)
                outline, begins = text.translate(None, _OF_NUMBERS), _PLAIN.match(text)
                if begins and outline in outlines:
                    line: Line | None = {"step": int(begins[1])}
                elif (line := parsed(text, path.name)) and len(outlines) < MOST_OUTLINES:
                    outlines.add(outline)
                if line is not None:
                    found.lacks_newline = piece.is_last
                    _judge(found, line, *offsets, step)
                elif _is_blank(text, piece.is_last):
                    _extend(found.blank, *offsets)
                else:
                    found.damaged.append(list(offsets))
                    found.damaged_lines.append(num_lines)
        found.size = file.tell()
    for spans in (found.later, found.damaged, found.blank):
        if spans and spans[-1][1] > found.size:  # the last line has no newline
            spans[-1][1] = found.size
            found.lacks_newline = False
    return found


def _judge(found: _Scan, line: Line, start: int, end: int, step: int) -> None:
    """Add a whole line to the later ones if it belongs there."""
    if REWOUND_TO in line and line[REWOUND_TO] <= step:
        found.later.clear()
    elif line["step"] > step:
        _extend(found.later, start, end)


def _is_blank(text: bytes, is_last: bool) -> bool:
    """Return whether a line that is not whole is empty, or the beginning of one at the end."""
    is_cut_off = is_last and text.startswith(b"{") and b"\0" not in text
    return is_cut_off or not text.strip()


def _named(numbers: list[int]) -> str:
    """Return the numbers of lines in words."""
    names = ", ".join(map(str, numbers[:MOST_NAMES]))
    more = f" and {len(numbers) - MOST_NAMES} more" if len(numbers) > MOST_NAMES else ""
    return f"line{'s' if len(numbers) > 1 else ''} {names}{more}"


@dataclass
class _Piece:
    """Consecutive lines of a file."""

    data: bytes
    offset: int
    """Offset of the first line in the file."""
    is_last: bool = False
    """Whether this is the rest of the file after its last newline."""

    def spans(self) -> list[tuple[int, int]]:
        """Return where each line begins, and where its newline is or would be."""
        newlines = (np.frombuffer(self.data, np.uint8) == ord("\n")).nonzero()[0].tolist()
        ends = [len(self.data)] if self.is_last else newlines
        return list(zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True))

    def text(self, start: int, end: int) -> bytes:
        """Return a line without its newline."""
        return self.data[start:end]


def _pieces(file: BinaryIO) -> Iterator[_Piece]:
    """Yield the lines of a file, a piece at a time."""
    offset, rest = 0, b""
    while read := file.read(PIECE):
        data = rest + read
        end = data.rfind(b"\n") + 1
        data, rest = data[:end], data[end:]
        if data:
            yield _Piece(data, offset)
        offset += end
    if rest:
        yield _Piece(rest, offset, is_last=True)


def _extend(spans: list[Span], start: int, end: int) -> None:
    """Add a part to the spans; one that follows on the last becomes one with it."""
    if spans and spans[-1][1] == start:
        spans[-1][1] = end
    else:
        spans.append([start, end])


def _is_end(spans: list[Span], size: int) -> bool:
    """Return whether the spans, which are sorted, are all of a file's end and nothing else."""
    following = zip(spans, [*spans[1:], [size, size]], strict=True)
    return all(span[1] == after[0] for span, after in following)


def _others(spans: list[Span], size: int) -> list[Span]:
    """Return the parts of a file between the spans, which are sorted."""
    edges = [0, *(edge for span in spans for edge in span), size]
    return [[start, end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _copy(path: Path, spans: list[Span], to: Path, mode: str, ending: bytes = b"") -> None:
    """Copy parts of a file to another one; each ends with `ending`."""
    with path.open("rb") as source, to.open(mode) as target:
        for start, end in spans:
            source.seek(start)
            last = b""
            for position in range(start, end, PIECE):
                last = source.read(min(PIECE, end - position))
                target.write(last)
            if not last.endswith(ending):
                target.write(ending)
