"""Settings that earlier versions had.

Files that still name them can be read: each removed setting is reported, and either ignored or
replaced by its successor. Such a name as a flag is an error that gives the reason.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from moebius.config.fields import shown


class Removed(NamedTuple):
    """A setting that no longer exists."""

    reason: str
    """Why the setting was removed, in a few words."""
    successor: str = ""
    """Dotted name of the setting that took its place; empty if the old value is ignored."""
    convert: Callable[[Any], Any] = lambda value: value
    """Convert the old setting's value to the successor's."""
    unchanged: tuple[Any, ...] = ()
    """Old values that behave like the code of today, so that ignoring them changes nothing."""


REMOVED: dict[str, Removed] = {
    "model.capacity_drop": Removed(
        "a full expert drops the tokens that come last, so that no token depends on later ones",
        unchanged=("last",),
    ),
}
"""The removed settings by dotted name."""


def explanation(name: str) -> str:
    """Return why the setting of a dotted name was removed, or "" if it never existed."""
    if name not in REMOVED:
        return ""
    removed = REMOVED[name]
    instead = f"; use {removed.successor}" if removed.successor else ""
    return f"{name} is no longer a setting ({removed.reason}){instead}"


def without_removed(values: dict[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """Return the nested values of a file with the removed settings left out or replaced.

    `report` is called with one line for each removed setting. If the file also sets the successor,
    the successor's own value counts.
    """
    kept = copy.deepcopy(values)
    for name, (reason, successor, convert, unchanged) in REMOVED.items():
        path, _, key = name.rpartition(".")
        table = _table(kept, path)
        if key not in table:
            continue
        old_value = table.pop(key)
        text = f"{name} is no longer a setting ({reason})"
        if not successor:
            differs = bool(unchanged) and old_value not in unchanged
            effect = f"; {shown(old_value)} is ignored, so training differs" if differs else ""
            report(f"{text}{effect or '; ignored'}")
            continue
        new_value = convert(old_value)
        report(f"{text}; read as {successor}={shown(new_value)}")
        path, _, key = successor.rpartition(".")
        _table(kept, path, create=True).setdefault(key, new_value)
    return kept


def _table(values: dict[str, Any], path: str, create: bool = False) -> dict[str, Any]:
    """Return the table at a dotted path. If there is none, return an empty one.

    With `create`, the empty table is also added to `values`, unless a value of another type is in
    its place, which the check of the settings refuses later.
    """
    for section in path.split("."):
        inner = values.setdefault(section, {}) if create else values.get(section)
        values = inner if isinstance(inner, dict) else {}
    return values
