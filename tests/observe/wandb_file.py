"""Read the file that the library `wandb` writes: LevelDB's log format around its own messages.

The library itself reads it only to upload it, with a program that is not written in Python.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
HEADER = 7
"""Bytes before each part: a checksum (4), the part's length (2) and its kind (1)."""
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(run: Path) -> list[Any]:
    """Return the messages of all files of a run's folder wandb/, in the order of their times."""
    from wandb.proto import wandb_internal_pb2

    files = sorted((run / "wandb").glob("*run-*/run-*.wandb"))
    return [
        wandb_internal_pb2.Record.FromString(text)  # pyright: ignore[reportAttributeAccessIssue]
        for file in files
        for text in _texts(file.read_bytes())
    ]


def _texts(data: bytes) -> Iterator[bytes]:
    position, text = HEADER, b""  # the file begins with the name of the format
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # filled up with zeros
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        text += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST):
            yield text
            text = b""
