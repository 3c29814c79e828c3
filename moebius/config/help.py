"""The help text of all settings: the type, bounds, value and meaning of each one.

The meanings are the docstrings below the fields of the configuration's classes.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import typing
from collections.abc import Collection
from typing import Any, Literal

from moebius.config.fields import annotations, bounds, members
from moebius.config.observe import Rule, actions
from moebius.config.tree import Config
from moebius.config.width import text_width

INDENT = " " * 6


def settings_help(config: Config, names: Collection[str] | None = None) -> str:
    """Return the text of all settings, a paragraph per section, with this configuration's values.

    With `names`, only these sections and settings are included. The four settings that all alarms
    share are explained once; below that, each alarm has its own meaning and values.
    """
    paragraphs = []
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        keys = [
            key
            for key in annotations(type(section))
            if names is None or {field.name, f"{field.name}.{key}"} & set(names)
        ]
        if keys:
            paragraphs.append("\n".join(_section(field.name, section, keys)))
    return "\n\n".join(paragraphs)


def field_docs(section: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, which Python itself does not keep."""
    docs = {}
    for statement, following in itertools.pairwise(_source(section).body):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs


@functools.cache
def _source(section: type) -> ast.ClassDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(section)))
    return typing.cast(ast.ClassDef, tree.body[0])


def _section(name: str, section: Any, keys: list[str]) -> list[str]:
    meanings = field_docs(type(section))
    lines = _wrapped(_summary(type(section)), f"{name}: ", "  ")
    alarms = {}
    for key in keys:
        annotation, value = annotations(type(section))[key], getattr(section, key)
        if isinstance(value, Rule):
            alarms[key] = value
        elif table := _table_of(annotation):
            lines += _wrapped(f"[[{name}.{key}]] in a TOML file", "  ", INDENT)
            lines += _wrapped(meanings[key], INDENT, INDENT)
            lines += _table_fields(table)
        else:
            lines += _setting(f"{name}.{key}", annotation, meanings[key], _typed(value))
    return lines + (_alarms(name, alarms, meanings) if alarms else [])


def _setting(name: str, annotation: Any, meaning: str, value: str = "") -> list[str]:
    limits = ", ".join(bound.requirement for bound in bounds(annotation))
    heading = f"--{name} {_metavar(annotation)}"
    heading += f" ({limits})" if limits else ""
    heading += f": {value}" if value else ""
    return [*_wrapped(heading, "  ", INDENT), *_wrapped(meaning, INDENT, INDENT)]


def _table_of(annotation: Any) -> type | None:
    """Return the class of the tables in a list of tables; None for another setting."""
    kinds = [typing.get_args(member)[:1] for member in members(annotation)]
    tables = [kind for (kind,) in filter(None, kinds) if dataclasses.is_dataclass(kind)]
    return typing.cast(type, tables[0]) if tables else None


def _table_fields(table: type) -> list[str]:
    """Return a paragraph for each setting in a table."""
    lines: list[str] = []
    for key, meaning in field_docs(table).items():
        kind = _metavar(annotations(table)[key]).lower()
        lines += _wrapped(f"{key} = {kind}: {meaning}", INDENT, INDENT + "  ")
    return lines


def _alarms(section: str, alarms: dict[str, Rule], meanings: dict[str, str]) -> list[str]:
    lines = _wrapped(f"{_summary(Rule)} Every alarm has these settings:", "  ", "  ")
    for key, annotation in annotations(Rule).items():
        lines += _setting(f"{section}.NAME.{key}", annotation, field_docs(Rule)[key])
    for name, rule in alarms.items():
        values = [f"{key} {_typed(value)}" for key, value in dataclasses.asdict(rule).items()]
        lines += _wrapped(f"--{section}.{name}.*: {', '.join(values)}", "  ", INDENT)
        choices = ", ".join(actions(name))
        lines += _wrapped(f"{meanings[name]} Actions: {choices}.", INDENT, INDENT)
    return lines


def _summary(section: type) -> str:
    """Return the docstring of a class up to the sentence that begins with "Raises"."""
    text = ast.get_docstring(_source(section)) or ""
    return " ".join(text.split()).split(" Raises ")[0]


def _metavar(annotation: Any) -> str:
    names = {int: "INT", float: "FLOAT", str: "TEXT", bool: "{true,false}"}
    shown = []
    for member in members(annotation):
        if typing.get_origin(member) is Literal:
            shown.append("{" + ",".join(typing.get_args(member)) + "}")
        elif typing.get_origin(member) is tuple:
            item = names[typing.get_args(member)[0]]
            shown.append(f"{item},{item},...")
        else:
            shown.append(names[member])
    return "|".join(shown)


def _typed(value: Any) -> str:
    """Return a value as a user would type it after its flag."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else str(value)


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        text_width(),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )
