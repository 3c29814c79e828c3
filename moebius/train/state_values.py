"""Check the values of a checkpoint's state.json before any of them is used.

Their hash says that they are what was written, but not that they were right: the file may come
from a version with other values, or from a person.
"""

from pathlib import Path
from typing import Any

from moebius.data.batches import Stretch
from moebius.errors import CheckpointError
from moebius.train.checkpoint import STATE
from moebius.train.checkpoint_file import ADVICE

STRETCH = "stretch"
"""Name of the value that says how the text is cut and mixed."""
LARGEST = 2**62
"""Largest integer in any value. No count of a run comes near it, and arithmetic in 64 bits allows
for it."""
_ALARMS = ("seen", "fine_at", "beyond_at")


def check_values(folder: Path, values: dict[str, Any], own: dict[str, Any]) -> None:
    """Compare the values with `own`, those that the run's state would write now.

    Each must be there and of the same type: counts are not negative, and lists as long as the
    run's. Raises CheckpointError, which names the first that is not.
    """
    for name, example in own.items():
        if name not in values:
            raise _refusal(folder, f"{name} is missing")
        value = values[name]
        is_right = _is_alarms(value) if name == "alarms" else _is_like(value, example)
        if not is_right or _is_beyond(value):
            raise _refusal(folder, f"{name} cannot be {_shortened(value)}")


def stretch_of(folder: Path, values: dict[str, Any], num_sources: int) -> Stretch | None:
    """Return how the text was cut and mixed; None if that has not changed in the run.

    Raises CheckpointError for a value that cannot be right.
    """
    value = values.get(STRETCH)
    if value is None:
        return None
    match value:
        case {"seq_len": int(seq_len), "weights": [*weights], "first": int(first)} if (
            isinstance(taken := value.get("taken"), list)
            and len(weights) == num_sources
            and len(taken) in (0, num_sources)
            and all(_is_like(count, 0) for count in (seq_len, first, *taken))
            and all(_is_like(weight, 0.0) for weight in weights)
            and not _is_beyond([seq_len, first, *taken])
            and seq_len
            and any(weights)
        ):
            return Stretch(seq_len, tuple(weights), first, tuple(taken))
    raise _refusal(folder, f"{STRETCH} cannot be {_shortened(value)}")


def _is_beyond(value: Any) -> bool:
    """Return whether an integer in the value is too large for arithmetic in 64 bits."""
    if isinstance(value, dict | list):
        return any(map(_is_beyond, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) > LARGEST


def _is_like(value: Any, example: Any) -> bool:
    if isinstance(example, list):
        return (
            isinstance(value, list)
            and len(value) == len(example)
            and all(_is_like(item, 0) for item in value)
        )
    return type(value) is type(example) and (not isinstance(value, int | float) or value >= 0)


def _is_alarms(value: Any) -> bool:
    """Return whether this has the form of what `Alarms.state` returns."""
    if not isinstance(value, dict) or not all(isinstance(value.get(key), list) for key in _ALARMS):
        return False
    counted = value.get("counted", [])  # versions before did not count
    if not isinstance(counted, list) or not all(map(_is_counted, counted)):
        return False
    return all(_is_seen(entry) for entry in value["seen"]) and all(
        _is_step_of_a_place(entry) for key in _ALARMS[1:] for entry in value[key]
    )


def _is_seen(entry: Any) -> bool:
    match entry:
        case [str(), int(), [*steps]]:
            return all(_is_figures(step) for step in steps)
        case [str(), int(), int(), [*figures]]:  # of one expert, in earlier versions
            return all(_is_figure(figure) for figure in figures)
    return False


def _is_figures(step: Any) -> bool:
    match step:
        case [int(), [*values]]:
            return all(_is_figure([0, value]) for value in values)
    return False


def _is_figure(figure: Any) -> bool:
    match figure:
        case [int(), int() | float()]:
            return True
    return False


def _is_counted(entry: Any) -> bool:
    match entry:
        case [int(), [*counts]]:
            return all(type(count) is int for count in counts)
    return False


def _is_step_of_a_place(entry: Any) -> bool:
    match entry:
        case [str(), int(), [*steps]]:
            return bool(steps) and all(type(step) is int for step in steps)
        case [str(), int(), int(), int()]:  # of one expert, in earlier versions
            return True
    return False


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refusal(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{folder / STATE}: {problem}; {ADVICE}")
