"""A checkpoint's state.json: its values, and the step that they must be of."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from moebius.errors import CheckpointError, one_line
from moebius.train.checkpoint_file import ADVICE

STATE = "state.json"

PARSING_ERRORS = (
    SafetensorError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    AssertionError,
)
"""What the parsers of JSON and safetensors raise for contents that make no sense."""


def parsed_state(folder: Path, data: bytearray) -> dict[str, Any]:
    """Return the values in the contents of a checkpoint's state.json.

    Raises CheckpointError if they are not an object, or of another step than the one in the
    folder's name, because the folder was renamed or copied from elsewhere.
    """
    state = parsed(folder / STATE, data, json.loads)
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / STATE}: not a JSON object; {ADVICE}")
    named = re.fullmatch(r"step-(\d+)", folder.name)
    step = state.get("step")
    if named and step is not None and step != int(named[1]):
        raise CheckpointError(
            f"{folder / STATE}: this is the checkpoint of step {step!r:.60}, under that name; "
            f"{ADVICE}"
        )
    return state


def parsed(path: Path, data: bytearray, parse: Callable[[bytearray], Any]) -> Any:
    """Return what a file's contents say. Raises CheckpointError if they make no sense."""
    try:
        return parse(data)
    except PARSING_ERRORS as error:
        raise CheckpointError(f"{path}: cannot be parsed, {one_line(error)}; {ADVICE}") from None
