"""Where a configuration comes from: a preset, a TOML file (which may name a base), flags; later ones win."""

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from moebius.config import Config
from moebius.errors import ConfigError
from moebius.fields import nearest, parse_text
from moebius.presets import preset

Values = dict[str, Any]  # of fields by name; a section's are nested


def read_config(source: str, flags: list[str]) -> Config:
    """The configuration named by a preset or a TOML file, with `--section.key value` flags on top.

    Raises ConfigError naming the file, the field and the nearest right name.
    """
    config = _from_source(source, seen=())
    return override(config, parse_flags(flags))


def override(config: Config, values: Values, origin: str = "") -> Config:
    """`config` with values[section][key] (or values[section][key][key]) set; origin (a file) opens the error's line. A
    section is checked as a whole, not field by field."""
    for section in values:
        if section not in _SECTIONS:
            raise ConfigError(
                f"{origin}unknown section {section!r}: one of {', '.join(_SECTIONS)}{nearest(section, _SECTIONS)}"
            )
    with _naming(origin):
        return _replaced(config, values, path="")


def parse_flags(flags: list[str]) -> Values:
    """`--section.key value` and `--section.key=value` as nested values, read by the field's type."""
    values: Values = {}
    remaining = list(flags)
    while remaining:
        flag = remaining.pop(0)
        name, has_value, text = flag.removeprefix("--").partition("=")
        path = name.replace("-", "_")
        if not flag.startswith("--") or "." not in path:
            raise ConfigError(f"{flag!r}: not understood; settings are given as --section.key value{_nearest_flag(name)}")
        if path not in _FIELDS:
            raise ConfigError(f"--{name}: no such field{_nearest_flag(name)}")
        if not has_value:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"--{name}: a value is wanted (one that begins with -- as --{name}=VALUE)")
            text = remaining.pop(0)
        *sections, key = path.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = parse_text(text, _FIELDS[path])
    return values


def to_toml(config: Config) -> str:
    """The configuration as TOML that reads back as itself: `moebius train FILE` repeats the run."""
    return "\n\n".join(_tables(config, "")) + "\n"


def _from_source(source: str, seen: tuple[Path, ...]) -> Config:
    path = Path(source)
    if path.suffix != ".toml":
        return preset(source)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: its base leads back to itself")
    try:
        values = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte offset {error.start} is not UTF-8") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise ConfigError(f"{path}: {error}") from None
    base = values.pop("base", None)
    config = Config() if base is None else _from_base(base, path, (*seen, path.resolve()))
    return override(config, values, origin=f"{path}: ")


def _from_base(base: Any, path: Path, seen: tuple[Path, ...]) -> Config:
    """What the file at `path` names as its base: a preset, or a TOML file seen from its own folder."""
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base={base!r}: the name of a preset or a TOML file is wanted")
    if base.endswith(".toml"):
        return _from_source(str(path.parent / base), seen)
    with _naming(f"{path}: base: "):
        return preset(base)


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{origin}{error}") from None


def _replaced(tree: Any, values: Values, path: str) -> Any:
    """A dataclass with some fields replaced; where a field is a dataclass itself, by one with some fields replaced."""
    own = get_type_hints(type(tree))
    changed: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{path}.{key}" if path else key
        if key not in own:
            hint = nearest(key, own) or f"; `moebius train --help` lists the fields of {path}"
            raise ConfigError(f"{name}: no such field{hint}")
        if is_dataclass(own[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{name}={value!r}: a section of fields is wanted, as in [{name}]")
            value = _replaced(getattr(tree, key), value, name)
        changed[key] = value
    return replace(tree, **changed)


def _tables(tree: Any, path: str) -> list[str]:
    """A TOML table for a dataclass, and one for each dataclass in it."""
    values = {field.name: getattr(tree, field.name) for field in fields(tree)}
    plain = [f"{name} = {_toml_value(value)}" for name, value in values.items() if not is_dataclass(value)]
    tables = ["\n".join([f"[{path}]", *plain])] if path else []
    for name, value in values.items():
        if is_dataclass(value):
            tables += _tables(value, f"{path}.{name}" if path else name)
    return tables


def _fields(tree: Any, path: str) -> dict[str, Any]:
    """Every setting's dotted name and type."""
    found: dict[str, Any] = {}
    for name, annotation in get_type_hints(tree).items():
        found |= _fields(annotation, f"{path}{name}.") if is_dataclass(annotation) else {f"{path}{name}": annotation}
    return found


def _nearest_flag(name: str) -> str:
    hint = nearest(name.replace("-", "_"), _FIELDS)
    return hint.replace("mean ", "mean --")


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    # JSON's strings, numbers and booleans are TOML's, but for the delete character, which JSON leaves bare, and for what
    # it escapes as two surrogates
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


_SECTIONS = [field.name for field in fields(Config)]
_FIELDS = _fields(Config, "")
