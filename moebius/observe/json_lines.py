"""metrics.jsonl, events.jsonl and samples.jsonl: a JSON object per line, each with its step."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from moebius.config.printable import print_note
from moebius.errors import StorageError
from moebius.observe.expert_counts import counts_of, read_counts
from moebius.observe.line_file import METRICS, Line, append_after, cut, last_line, read_lines
from moebius.observe.metrics import COUNTS, StepMetrics
from moebius.observe.sink import Event, Sample

EVENTS, SAMPLES = "events.jsonl", "samples.jsonl"


class JsonLines:
    """The sink that every run has: files of JSON lines in its directory."""

    def __init__(self, report: Callable[[str], None] = print_note):
        """`report` gets a line for each file of which some lines are damaged."""
        self._report = report

    def open(self, run: Path, step: int) -> None:
        """Open the files for appending, without the lines of steps after `step`.

        moebius/observe/line_file.py says which lines stay nevertheless, and what becomes of
        damaged ones.
        """
        self._samples = run / SAMPLES
        self._cut(self._samples, step)
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

    def sample(self, sample: Sample) -> None:
        """Append a line to samples.jsonl, in place of an earlier text of the same step."""
        try:
            append_after(self._samples, sample.step - 1, sample.to_json())
        except OSError as error:
            raise StorageError(f"{self._samples}: {error.strerror}") from None

    def rewind(self, step: int) -> None:
        """Drop metrics and samples after `step`. Events stay: they say why the run went back."""
        _close(self._metrics)
        self._metrics = self._opened_after(Path(self._metrics.name), step)
        self._cut(self._samples, step)

    def close(self) -> None:
        """Close the files."""
        _close(self._metrics)
        _close(self._events)

    def _opened_after(self, path: Path, step: int) -> TextIO:
        """Remove all lines of steps after `step`, and return the file, opened for appending."""
        self._cut(path, step)
        try:
            return path.open("a", buffering=1)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None

    def _cut(self, path: Path, step: int) -> None:
        try:
            cut(path, step, self._report)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None


def read_metrics(path: Path) -> list[StepMetrics]:
    """Return the steps in a metrics.jsonl. Raises OSError.

    Those of a model with many experts whose counts are lost are left out.
    """
    lines = read_lines(path)
    counts = {} if all(COUNTS in line for line in lines) else dict(read_counts(path.parent))
    return [
        StepMetrics.from_json(line, counts.get(line["step"]))
        for line in lines
        if COUNTS in line or line["step"] in counts
    ]


def last_metrics(path: Path) -> StepMetrics | None:
    """Return the last step in a metrics.jsonl, or None if it has none. Raises OSError.

    Raises KeyError, TypeError or ValueError for a line that another version has written.
    """
    line = last_line(path)
    if line is None:
        return None
    counts = None if COUNTS in line else counts_of(path.parent, line["step"])
    return StepMetrics.from_json(line, counts)


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
