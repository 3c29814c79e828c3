"""metrics.jsonl and events.jsonl: one JSON object per line, each with its step."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from moebius.errors import StorageError
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import REWOUND_TO, Event

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


class JsonLines:
    """The sink that every run has: two files of JSON lines in its directory."""

    def open(self, run: Path, step: int) -> None:
        """Open both files for appending, without the lines of steps after `step`.

        A roll-back to `step` or before stays, with the events that led to it, because it says why
        batches were left out.
        """
        self._metrics = _opened_after(run / METRICS, step)
        try:
            self._events = _opened_after(run / EVENTS, step)
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
        self._metrics = _opened_after(Path(self._metrics.name), step)

    def close(self) -> None:
        """Close both files."""
        _close(self._metrics)
        _close(self._events)


def read_metrics(path: Path) -> list[StepMetrics]:
    """Return the steps in a metrics.jsonl. Raises OSError."""
    return [StepMetrics.from_json(line) for line in read_lines(path)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return all complete lines of a file, without a last line that a crash cut short."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _opened_after(path: Path, step: int) -> TextIO:
    """Remove all lines of steps after `step`, and return the file, opened for appending."""
    try:
        lines = read_lines(path) if path.exists() else []
        aside = path.with_suffix(".jsonl.partial")
        aside.write_text("".join(_text(line) for line in _until(step, lines)))
        aside.replace(path)
        return path.open("a", buffering=1)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None


def _until(step: int, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines that belong to the history of a run that is at `step`."""
    rewound = [n for n, line in enumerate(lines) if line.get(REWOUND_TO, math.inf) <= step]
    settled = rewound[-1] + 1 if rewound else 0
    return lines[:settled] + [line for line in lines[settled:] if line["step"] <= step]


def _append(file: TextIO, line: dict[str, Any]) -> None:
    try:
        file.write(_text(line))
    except OSError as error:
        raise StorageError(f"{file.name}: {error.strerror}") from None


def _close(file: TextIO) -> None:
    with suppress(OSError):  # what `_append` could not write stays in the buffer; it was reported
        file.close()


def _text(line: dict[str, Any]) -> str:
    return json.dumps(_finite(line)) + "\n"


def _finite(value: Any) -> Any:
    """Return the value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
