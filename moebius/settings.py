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


def read_config(source: str, flags: list[str]) -> Config:
    """The configuration named by a preset or a TOML file, with `--section.key value` flags on top.

    Raises ConfigError naming the file, the field and the nearest right name.
    """
    config = _from_source(source, seen=())
    return override(config, parse_flags(flags))


def override(config: Config, values: dict[str, dict[str, Any]], origin: str = "") -> Config:
    """`config` with values[section][key] set; origin (a file) opens the error's line. Checked as a whole, not one by one."""
    sections: dict[str, Any] = {}
    for section, entries in values.items():
        if section not in _SECTIONS:
            raise ConfigError(
                f"{origin}unknown section {section!r}: one of {', '.join(_SECTIONS)}{nearest(section, _SECTIONS)}"
            )
        if not isinstance(entries, dict):
            raise ConfigError(f"{origin}{section}={entries!r}: a section of fields is wanted, as in [{section}]")
        known = [field.name for field in fields(_SECTIONS[section])]
        for key in entries:
            if key not in known:
                hint = nearest(key, known) or f"; `moebius train --help` lists the fields of {section}"
                raise ConfigError(f"{origin}{section}.{key}: no such field{hint}")
        with _naming(origin):
            sections[section] = replace(getattr(config, section), **entries)
    with _naming(origin):
        return replace(config, **sections)


def parse_flags(flags: list[str]) -> dict[str, dict[str, Any]]:
    """`--section.key value` and `--section.key=value` as nested values, read by the field's type."""
    values: dict[str, dict[str, Any]] = {}
    remaining = list(flags)
    while remaining:
        flag = remaining.pop(0)
        name, has_value, text = flag.removeprefix("--").partition("=")
        section, dot, key = name.replace("-", "_").partition(".")
        if not flag.startswith("--") or not dot:
            raise ConfigError(f"{flag!r}: not understood; settings are given as --section.key value{_nearest_flag(name)}")
        annotation = get_type_hints(_SECTIONS[section]).get(key) if section in _SECTIONS else None
        if annotation is None:
            raise ConfigError(f"--{name}: no such field{_nearest_flag(name)}")
        if not has_value:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"--{name}: a value is wanted (one that begins with -- as --{name}=VALUE)")
            text = remaining.pop(0)
        values.setdefault(section, {})[key] = parse_text(text, annotation)
    return values


def to_toml(config: Config) -> str:
    """The configuration as TOML that reads back as itself: `moebius train FILE` repeats the run."""
    lines: list[str] = []
    for section in fields(config):
        lines += ["", f"[{section.name}]"] if lines else [f"[{section.name}]"]
        value = getattr(config, section.name)
        lines += [f"{field.name} = {_toml_value(getattr(value, field.name))}" for field in fields(value)]
    return "\n".join(lines) + "\n"


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


def _nearest_flag(name: str) -> str:
    known = [f"{section}.{field.name}" for section, tree in _SECTIONS.items() for field in fields(tree)]
    hint = nearest(name.replace("-", "_"), known)
    return hint.replace("mean ", "mean --")


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    # JSON's strings, numbers and booleans are TOML's, but for the delete character, which JSON leaves bare, and for what
    # it escapes as two surrogates
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


_SECTIONS: dict[str, Any] = {name: tree for name, tree in get_type_hints(Config).items() if is_dataclass(tree)}
