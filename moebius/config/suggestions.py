"""Suggestions for misspelled or foreign names, which errors end with."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moebius.config.synonyms import SYNONYMS, VALUES

MOST_SUGGESTIONS = 3
"""If a wrong name fits more settings than this, none of them is suggested."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean X?` for the name most similar to `name`, or "" if none is similar."""
    import difflib  # only errors need it, and it takes a while to import

    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
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

    The name may lack its section, have the wrong section, or be another trainer's name for the
    setting. `settings` are all dotted names that exist; `written` turns one of them and a value
    ("" for none) into what the user would write.
    """
    last = name.rpartition(".")[2]
    fitting = [setting for setting in settings if f".{setting}".endswith(f".{name}")]
    conjunction, remark = " or ", ""
    if not fitting and (synonym := SYNONYMS.get(last.lower())):
        if not synonym.settings:
            return f"; {synonym.remark}"
        fitting, value, conjunction = list(synonym.settings), synonym.value or value, " and "
        remark = f" ({synonym.remark})" if synonym.remark else ""
    if not fitting:
        fitting = [setting for setting in settings if setting.rpartition(".")[2] == last]
    if not 0 < len(fitting) <= MOST_SUGGESTIONS:
        return ""
    candidates = [written(setting, _right_value(setting, value)) for setting in fitting]
    return f"; did you mean {conjunction.join(candidates)}{remark}?"


def _right_value(setting: str, value: Any) -> str:
    """Return the allowed value that `value` stands for, or "" if it need not be changed."""
    allowed = VALUES.get(setting, {}).values()
    return value if value in allowed else value_suggestion(setting, value)
