"""Suggestions for misspelled or foreign names, which errors end with."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moebius.config.synonyms import SYNONYMS, VALUES

MOST_SUGGESTIONS = 3
"""If a wrong name fits more settings than this, none of them is suggested."""

SIMILAR = 0.65
"""Smallest similarity (by difflib) of a choice that is suggested."""
MISSPELLED = 0.8
"""Smallest similarity of a setting's name. It is higher, because there are hundreds of names."""
MISSPELLED_PATH = 0.85
"""Smallest similarity of a setting's dotted name. Sections alone make many of them similar."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean X?` for the name most similar to `name`, or "" if none is similar."""
    import difflib  # only errors need it, and it takes a while to import

    close = difflib.get_close_matches(name.lower(), list(allowed), n=1, cutoff=SIMILAR)
    return f"; did you mean {close[0]}?" if close else ""


def value_suggestion(setting: str, value: Any) -> str:
    """Return the allowed value of a setting that other trainers write as `value`, or ""."""
    if not isinstance(value, str | bool):
        return ""
    return VALUES.get(setting, {}).get(str(value).lower(), "")


def suggestion(
    name: str, value: Any, settings: Sequence[str], written: Callable[[str, str], str]
) -> str:
    """Return the end of an error about an unknown setting, `; did you mean X?`, or "".

    The name may lack its section, have the wrong section, be misspelled, or be another trainer's
    name for the setting. `settings` are all dotted names that exist; `written` turns one of them
    and a value ("" for none) into what the user would write.
    """
    name = name.lower().replace("-", "_")
    last = name.rpartition(".")[2]
    if last in ("name", "type") and "." in name:  # such as optimizer.name
        of_parent = suggestion(name.rpartition(".")[0], value, settings, written)
        if of_parent:
            return of_parent
    fitting = [setting for setting in settings if f".{setting}".endswith(f".{name}")]
    conjunction, remark = " or ", ""
    if not fitting and (synonym := SYNONYMS.get(last)):
        if not synonym.settings:
            return f"; {synonym.remark}"
        if synonym.value:  # the name is a switch, such as bf16
            value = synonym.value if _is_on(value) else value
        fitting, conjunction = list(synonym.settings), " and "
        remark = f" ({synonym.remark})" if synonym.remark else ""
    if not fitting:
        fitting = _misspelled_path(name, settings)
    if not fitting:
        fitting = [setting for setting in settings if setting.rpartition(".")[2] == last]
    if not fitting and (similar := _misspelled(last, settings)):
        return suggestion(similar, value, settings, written)
    if not 0 < len(fitting) <= MOST_SUGGESTIONS:
        return ""
    candidates = [written(setting, _right_value(setting, value)) for setting in fitting]
    return f"; did you mean {conjunction.join(candidates)}{remark}?"


def _misspelled_path(name: str, settings: Sequence[str]) -> list[str]:
    """Return the setting whose dotted name is most like `name`, or one of the table `name`."""
    import difflib

    inside = [setting for setting in settings if setting.startswith(f"{name}.")]
    return inside[:1] or difflib.get_close_matches(name, settings, n=1, cutoff=MISSPELLED_PATH)


def _misspelled(last: str, settings: Sequence[str]) -> str:
    """Return the name without a section, ours or another trainer's, that is most like `last`."""
    import difflib

    known = [setting.rpartition(".")[2] for setting in settings] + list(SYNONYMS)
    close = difflib.get_close_matches(last, known, n=1, cutoff=MISSPELLED)
    return close[0] if close and close[0] != last else ""


def _is_on(value: Any) -> bool:
    """Return whether a value leaves a switch on; `--bf16 false` does not mean bfloat16."""
    return str(value).lower() not in ("false", "no", "off", "none")


def _right_value(setting: str, value: Any) -> str:
    """Return the allowed value that `value` stands for, or "" if it need not be changed."""
    allowed = VALUES.get(setting, {}).values()
    return value if value in allowed else value_suggestion(setting, value)
