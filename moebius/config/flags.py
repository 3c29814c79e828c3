"""Turn settings on the command line (`--section.key value`) into nested values."""

import functools
import typing
from typing import Any, Literal

from moebius.config.fields import members, settings
from moebius.config.removed import explanation
from moebius.config.suggestions import suggestion
from moebius.config.tree import Config
from moebius.errors import ConfigError

LISTS = ("data.source", "data.weights", "model.num_experts")
"""Settings of which several values may have been meant to be one list."""

Values = dict[str, Any]
"""Values of settings by name; those of a section are nested under the section's name."""


def parse_flags(flags: list[str]) -> Values:
    """Return the nested values of `--section.key value` and `--section.key=value` flags.

    A value is read according to the setting's type, but not checked yet: `override` does that.
    Raises ConfigError for a flag that names no setting, with the most similar valid name, and for
    a flag that is given twice.
    """
    values: Values = {}
    typed: dict[str, str] = {}
    remaining = list(flags)
    while remaining:
        flag = remaining.pop(0)
        name, has_value, text = flag.removeprefix("--").partition("=")
        path = name.replace("-", "_")
        if not flag.startswith("--") or path not in _settings():
            raise ConfigError(_unknown(flag, name, path, text or next(iter(remaining), "")))
        if not has_value:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(
                    f"--{name}: a value is missing; write one that begins with -- as "
                    f"--{name}=VALUE"
                )
            text = remaining.pop(0)
        if path in typed:
            remedy = "several are separated by commas: A,B" if path in LISTS else "give it once"
            raise ConfigError(f"--{name}: {given_twice(typed[path], text)}; {remedy}")
        typed[path] = text
        *sections, key = path.split(".")
        table = values
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = parse_text(text, _settings()[path])
    return values


def given_twice(first: object, second: object) -> str:
    """Return the reason why a repeated flag is refused: no value may win over another silently."""
    return f"given twice, as {str(first)!r} and as {str(second)!r}"


def is_last_part(name: str) -> bool:
    """Return whether the name is the last part of a setting's, as `steps` is of train.steps."""
    return any(path.endswith(f".{name.replace('-', '_')}") for path in _settings())


def parse_text(text: str, annotation: Any) -> Any:
    """Return `text` parsed as a value of the annotated type.

    Text that cannot be parsed is returned as it is; the check of the settings then refuses it.
    """
    types = members(annotation)
    if str in types or any(typing.get_origin(kind) is Literal for kind in types):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "," in text or text.startswith(("[", "(")):
        items = text.strip("[]() ").removesuffix(",")
        return [_number(item.strip()) for item in items.split(",")] if items else []
    return _number(text)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


@functools.cache
def _settings() -> dict[str, Any]:
    return settings(Config)


def _unknown(flag: str, name: str, path: str, text: str) -> str:
    """Return the error for a flag that names no setting; `text` is its value, if any."""
    if flag.startswith("--") and (removed := explanation(path)):
        return f"--{removed}"
    names = list(_settings())
    path = path.lstrip("_")  # the dash of a flag like -x, replaced above
    hint = suggestion(path, text, names, _written)
    if flag.startswith("--") and "." in path:
        section = path.partition(".")[0]
        hint = hint or f"; `moebius train --help` lists the settings of {section}"
        return f"--{name}: no such setting{hint}"
    if hint and "did you mean" not in hint:
        return f"{flag!r}: not understood{hint}"
    return f"{flag!r}: not understood; settings are given as --section.key value{hint}"


def _written(setting: str, value: str) -> str:
    return f"--{setting} {value}" if value else f"--{setting}"
