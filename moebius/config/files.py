"""Read configurations from presets and TOML files, override values, and write TOML again."""

import json
import shlex
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from moebius.config.data import DataConfig
from moebius.config.fields import annotations, settings, shown
from moebius.config.flags import Values, parse_flags
from moebius.config.paths import expanded
from moebius.config.phases import REPLACED
from moebius.config.presets import PRESETS, preset
from moebius.config.printable import CONTROL_CHARACTERS, print_note
from moebius.config.removed import explanation, without_removed
from moebius.config.suggestions import nearest, suggestion
from moebius.config.tree import Config
from moebius.errors import ConfigError

FOLLOWING = tuple(f"train.{name}" for name in REPLACED)
"""Settings that are left out of a file with phases, from which they follow."""
PHASES = "train.phases"
"""The setting that is a list of tables. Without any, it is left out, so that tables can be added
at the end of the file."""
LONGEST_CHAIN = 100  # of files, each the base of the one before

Report = Callable[[str], None]
"""Called with one line about a file, without the program's name."""


def read_config(source: str, flags: list[str], report: Report = print_note) -> Config:
    """Return the configuration of a preset or a TOML file, changed by `--section.key value` flags.

    A file may name a `base`: a preset, or another file (relative to the folder of the first),
    whose settings it changes. `report` is called with one line for each setting in a file that no
    longer exists. Raises ConfigError, in one line that names the file, the setting and the most
    similar valid name.
    """
    return override(_from_source(source, (), report), parse_flags(flags))


def override(config: Config, values: Values, origin: str = "") -> Config:
    """Return `config` with values[section][key], or values[section][alarm][key], replaced.

    A section is checked as a whole, so that settings which depend on each other can be changed
    together. `origin`, a file's name followed by a colon, is put before the error. Raises
    ConfigError.
    """
    sections = list(annotations(Config))
    with _naming(origin):
        for section, inner in values.items():
            if section not in sections:
                raise ConfigError(_unknown_section(section, inner, sections))
        result = _replaced(config, values, path="")
        _check_replaced(result, values)
        return result


def to_toml(config: Config) -> str:
    """Return the whole configuration as TOML that `read_config` reads back as the same.

    There is a table for each section and each alarm.
    """
    return "\n\n".join(_tables(config, "")) + "\n"


def _from_source(source: str, seen: tuple[Path, ...], report: Report) -> Config:
    path = Path(source)
    if not _is_toml(source):
        if (path / "config.toml").is_file():
            raise ConfigError(
                f"{source}: the directory of a run; `moebius resume {source}` continues it, and "
                f"{path / 'config.toml'} is its configuration"
            )
        if "=" in source:
            raise ConfigError(
                f"{source!r}: not understood; settings are given as --section.key value"
            )
        if source not in PRESETS and _is_text(source):
            raise ConfigError(
                f"{source}: neither a preset nor a TOML file; text is given as "
                f"--data.source {shlex.quote(source)}"
            )
        return preset(source)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: its base leads back to itself")
    if len(seen) > LONGEST_CHAIN:
        raise ConfigError(f"{path}: more than {LONGEST_CHAIN} files lead here by their bases")
    values = read_toml(path)
    base = values.pop("base", None)
    seen = (*seen, path.resolve())
    config = Config() if base is None else _from_base(base, path, seen, report)
    values = without_removed(values, lambda line: report(f"{path}: {line}"))
    return override(config, values, origin=f"{path}: ")


def _is_text(source: str) -> bool:
    """Return whether the text names something to train on, which is given as data.source."""
    is_known = source == DataConfig.source or source.startswith("hf:") or "://" in source
    return is_known or any(letter in source for letter in "*?[") or expanded(source).exists()


def _is_toml(source: str) -> bool:
    """Return whether the text names a file rather than a preset."""
    return Path(source).suffix.lower() == ".toml"


def from_values(values: Values, report: Report = print_note, origin: str = "") -> Config:
    """Return the configuration of nested values, as a whole file or `asdict` has them.

    What is missing has its default. `report` is that of `read_config`, and `origin` that of
    `override`. Raises ConfigError.
    """
    values = without_removed(values, lambda line: report(f"{origin}{line}"))
    return override(Config(), values, origin)


def read_toml(path: Path) -> Values:
    """Return the nested values of a TOML file. Raises ConfigError, which names the file."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8").removeprefix("\ufeff"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte offset {error.start} is not UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{path}: its lists or tables are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise ConfigError(f"{path}: {error}") from None


def _from_base(base: Any, path: Path, seen: tuple[Path, ...], report: Report) -> Config:
    """Return the configuration of the preset or file that the file at `path` names as its base."""
    if not isinstance(base, str):
        raise ConfigError(
            f"{path}: base={shown(base)}: must be the name of a preset or a TOML file"
        )
    if _is_toml(base):
        return _from_source(str(path.parent / base), seen, report)
    with _naming(f"{path}: base: "):
        return preset(base)


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{origin}{error}") from None


def _replaced(section: Any, values: Values, path: str) -> Any:
    """Return a section with some of its settings replaced, and those of sections inside it."""
    own = annotations(type(section))
    changed: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{path}.{key}" if path else key
        if key not in own:
            raise ConfigError(_unknown_setting(name, value))
        if is_dataclass(own[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{name}={shown(value)}: must be a table of settings, [{name}]")
            value = _replaced(getattr(section, key), value, name)
        changed[key] = value
    return replace(section, **changed)


def _check_replaced(config: Config, values: Values) -> None:
    """Raise ConfigError if `values` have a setting that the phases replace by another value."""
    if not config.train.phases:
        return
    given = values.get("train", {})
    names = [n for n in REPLACED if n in given and given[n] != getattr(config.train, n)]
    if names:
        wrong = ", ".join(f"train.{name}={shown(given[name])}" for name in names)
        right = ", ".join(f"{name}={shown(getattr(config.train, name))}" for name in names)
        follow, them = ("follows", "it") if len(names) == 1 else ("follow", "them")
        raise ConfigError(
            f"{wrong}: {follow} from train.phases, which give {right}; leave {them} out, or "
            "change the phases"
        )


def _unknown_setting(name: str, value: Any) -> str:
    """Return the error for an unknown setting, which may be a table of settings."""
    if removed := explanation(name):
        return removed
    names = list(settings(Config))
    inner = value.items() if isinstance(value, dict) else [("", value)]
    paths = ((f"{name}.{key}".rstrip("."), item) for key, item in inner)
    hints = (suggestion(path, item, names, _written) for path, item in paths)
    section = name.rpartition(".")[0]
    hint = next(filter(None, hints), f"; `moebius train --help` lists the settings of {section}")
    return f"{name}: no such setting{hint}"


def _unknown_section(section: str, inner: Any, sections: list[str]) -> str:
    """Return the error for an unknown section; `inner` is the value or table that it was given."""
    names = list(settings(Config))
    if isinstance(inner, dict):
        hints = (suggestion(f"{section}.{key}", inner[key], names, _written) for key in inner)
        hint = nearest(section, sections) or next(filter(None, hints), "")
    else:
        hint = suggestion(section, inner, names, _written) or nearest(section, sections)
    return f"unknown section {section!r}: must be one of {', '.join(sections)}{hint}"


def _written(setting: str, value: str) -> str:
    return f'{setting} = "{value}"' if value else setting


def _tables(section: Any, path: str) -> list[str]:
    """Return a TOML table for a section, and one for each section inside it."""
    values = {field.name: getattr(section, field.name) for field in fields(section)}
    arrays = {name: value for name, value in values.items() if _is_array_of_tables(value)}
    plain = [
        f"{name} = {_toml_value(value)}"
        for name, value in values.items()
        if not is_dataclass(value)
        and name not in arrays
        and not (arrays and f"{path}.{name}" in FOLLOWING)
        and f"{path}.{name}" != PHASES
    ]
    tables = ["\n".join([f"[{path}]", *plain])] if path else []
    for name, value in values.items():
        if is_dataclass(value):
            tables += _tables(value, f"{path}.{name}" if path else name)
    for name, items in arrays.items():
        for item in items:
            (table,) = _tables(item, f"{path}.{name}")
            tables.append(table.replace(f"[{path}.{name}]", f"[[{path}.{name}]]", 1))
    return tables


def _is_array_of_tables(value: Any) -> bool:
    return isinstance(value, tuple) and any(map(is_dataclass, value))


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # JSON's strings, numbers and booleans are TOML's, except for the characters that JSON would
    # escape as two surrogates. JSON leaves some of the control characters as they are.
    text = json.dumps(value, ensure_ascii=False)
    return CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
