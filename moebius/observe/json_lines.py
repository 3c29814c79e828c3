"""metrics.jsonl and events.jsonl: one JSON object per line, each with its step."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from moebius.config.printable import print_note
from moebius.errors import StorageError
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import RESUMED, REWOUND_TO, Event

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
DAMAGED = ".damaged"  # suffix of the file that keeps the damaged lines

Line = dict[str, Any]


class JsonLines:
    """The sink that every run has: two files of JSON lines in its directory."""

    def __init__(self, report: Callable[[str], None] = print_note):
        """`report` gets a line for each file of which some lines are damaged."""
        self._report = report

    def open(self, run: Path, step: int) -> None:
        """Open both files for appending, without the lines of steps after `step`.

        A roll-back to `step` or before stays, with the events that led to it, because it says why
        text was left out. Events of settings that were changed stay, too. Damaged lines are moved
        to a file of their own.
        """
        self._metrics = self._opened_after(run / METRICS, step)
        try:
            self._events = self._opened_after(run / EVENTS, step)
        except StorageError:
            _close(self._metrics)
            raise

    def write(self, metrics: StepMetrics) -> None:
        """Append a line to metrics.jsonl and flush it."""
        _append(self._metrics, metrics.to_json())

    def event(self, event: Event) -> None:
        """Append a line to events.jsonl and flush it."""
        _append(self._events, event.to_json())

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`. Events stay, because they say why the run went back."""
        _close(self._metrics)
        self._metrics = self._opened_after(Path(self._metrics.name), step)

    def close(self) -> None:
        """Close both files."""
        _close(self._metrics)
        _close(self._events)

    def _opened_after(self, path: Path, step: int) -> TextIO:
        """Remove all lines of steps after `step`, and return the file, opened for appending."""
        try:
            lines, damaged = _split(path.read_bytes() if path.exists() else b"")
            if damaged:
                beside = path.with_name(path.name + DAMAGED)
                with beside.open("ab") as file:
                    file.write(b"".join(line + b"\n" for line in damaged))
                number = f"{len(damaged)} damaged line{'s' if len(damaged) > 1 else ''}"
                self._report(f"{path}: {number} moved to {beside.name}")
            partial = path.with_suffix(".jsonl.partial")
            partial.write_text("".join(_text(line) for line in _until(step, lines)))
            partial.replace(path)
            return path.open("a", buffering=1)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None


def read_metrics(path: Path) -> list[StepMetrics]:
    """Return the steps in a metrics.jsonl. Raises OSError."""
    return [StepMetrics.from_json(line) for line in read_lines(path)]


def read_lines(path: Path) -> list[Line]:
    """Return all complete lines of a file, without those that are damaged. Raises OSError."""
    return _split(path.read_bytes())[0]


def lines_after(path: Path, step: int) -> str:
    """Return the text of the lines that opening the file at `step` would drop. Raises OSError."""
    lines = read_lines(path) if path.exists() else []
    kept = {id(line) for line in _until(step, lines)}
    return "".join(_text(line) for line in lines if id(line) not in kept)


def _split(data: bytes) -> tuple[list[Line], list[bytes]]:
    """Return the lines of a file, and the bytes of the damaged ones.

    The beginning of a line at the end of the file, which a crash cut off, is in neither.
    """
    lines: list[Line] = []
    damaged: list[bytes] = []
    texts = data.split(b"\n")
    for number, text in enumerate(texts, start=1):
        line = _parsed(text)
        is_cut_off = number == len(texts) and text.startswith(b"{") and b"\0" not in text
        if line is not None:
            lines.append(line)
        elif text.strip() and not is_cut_off:
            damaged.append(text)
    return lines, damaged


def _parsed(text: bytes) -> Line | None:
    """Return a line as an object with a step, or None if it is damaged."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    if not isinstance(line, dict):
        return None
    steps = [line.get("step"), line.get(REWOUND_TO, 0)]
    return line if all(type(step) is int for step in steps) else None


def _until(step: int, lines: list[Line]) -> list[Line]:
    """Return the lines that belong to the history of a run that is at `step`."""
    rewound = [n for n, line in enumerate(lines) if line.get(REWOUND_TO, math.inf) <= step]
    settled = rewound[-1] + 1 if rewound else 0
    return lines[:settled] + [
        line for line in lines[settled:] if line["step"] <= step or line.get("event") == RESUMED
    ]


def _append(file: TextIO, line: Line) -> None:
    try:
        file.write(_text(line))
    except OSError as error:
        raise StorageError(f"{file.name}: {error.strerror}") from None


def _close(file: TextIO) -> None:
    with suppress(OSError):  # what `_append` could not write stays in the buffer; it was reported
        file.close()


def _text(line: Line) -> str:
    return json.dumps(_finite(line)) + "\n"


def _finite(value: Any) -> Any:
    """Return the value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
