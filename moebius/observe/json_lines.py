"""metrics.jsonl and events.jsonl: one JSON object a line, each with its step."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from moebius.errors import StorageError


class JsonLines:
    """Appends lines; on resuming, the lines of steps that will be run again are dropped first."""

    def __init__(self, path: Path, resume_step: int = 0):
        try:
            kept = [line for line in read_lines(path) if line["step"] <= resume_step] if path.exists() else []
            aside = path.with_suffix(".jsonl.partial")
            aside.write_text("".join(_line(values) for values in kept))
            aside.replace(path)
            self._file = path.open("a", buffering=1)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None

    def write(self, values: dict[str, Any]) -> None:
        """Append one line, at once."""
        try:
            self._file.write(_line(values))
        except OSError as error:
            raise StorageError(f"{self._file.name}: {error.strerror}") from None

    def close(self) -> None:
        with suppress(OSError):  # what `write` could not write stays in the buffer; it has been reported
            self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut short by a crash is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _line(values: dict[str, Any]) -> str:
    return json.dumps(_finite(values)) + "\n"


def _finite(value: Any) -> Any:
    # JSON has no NaN; null keeps the file readable by every parser
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
