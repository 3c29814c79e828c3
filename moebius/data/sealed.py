"""JSON files that carry a checksum over their own values, so that a change to them is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

CHECKSUM = "sha256"


def sealed_text(values: dict[str, Any]) -> str:
    """Return the text of a file with the values and their checksum."""
    return json.dumps(values | {CHECKSUM: _checksum(values)}, indent=1)


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Write the values and their checksum. Raises OSError."""
    path.write_text(sealed_text(values), encoding="utf-8")


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the values. Raises OSError, and ValueError if they are not those that were written.

    A file without a checksum is refused too.
    """
    sealed = json.loads(path.read_bytes())
    if not isinstance(sealed, dict):
        raise ValueError("not an object")
    checksum = sealed.pop(CHECKSUM, None)
    if checksum != _checksum(sealed):
        raise ValueError("its checksum differs")
    return sealed


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
