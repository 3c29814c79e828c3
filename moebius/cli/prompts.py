"""Read the prompts of `moebius generate` from a file or from standard input."""

import json
import sys
from pathlib import Path
from typing import Any

from moebius.errors import DataError, StorageError

STDIN = "-"


def read_prompts(name: str) -> list[str]:
    """Return the prompts in a file, or those on standard input for the name "-".

    Each line is a prompt, and empty lines are left out. If the first line is a JSON object with
    a `prompt`, or the file's name ends in .jsonl, all lines are such objects; a prompt may then
    have several lines, or be empty. Raises StorageError if the file cannot be read, and
    DataError, which names the line, for one that is no prompt.
    """
    place = "standard input" if name == STDIN else name
    lines = _lines(_read(name), place)
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise DataError(f"{place}: has no prompts; write one on each line")
    if name.endswith(".jsonl") or _prompt(numbered[0][1]) is not None:
        return [_json_prompt(line, f"{place}: line {number}") for number, line in numbered]
    return [line for _, line in numbered]


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8.

    Surrogates cannot. Python represents bytes that are not UTF-8 by them, and JSON can spell one.
    """
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _read(name: str) -> bytes:
    if name != STDIN:
        try:
            return Path(name).read_bytes()
        except (OSError, ValueError) as error:  # a name with a null character is a ValueError
            raise StorageError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if sys.stdin is None:
        raise StorageError("standard input is closed; give --prompts the name of a file")
    return sys.stdin.buffer.read()


def _lines(data: bytes, place: str) -> list[str]:
    """Return the lines of the data without their ends."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{place}: byte offset {error.start} is not UTF-8 (0x{byte:02x})"
        ) from None
    # `splitlines` would also divide a prompt at characters that are not line ends of a file.
    return text.replace("\r\n", "\n").split("\n")


def _json_prompt(line: str, place: str) -> str:
    prompt = _prompt(line)
    if prompt is None:
        raise DataError(f'{place}: must be a JSON object with a text as its "prompt"')
    if not is_utf8(prompt):
        raise DataError(f"{place}: the prompt has half of a character (a lone surrogate)")
    return prompt


def _prompt(line: str) -> str | None:
    """Return the prompt of a line that is a JSON object with one, and None for any other."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    prompt = value.get("prompt") if isinstance(value, dict) else None
    return prompt if isinstance(prompt, str) else None
