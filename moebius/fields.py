"""Holds a dataclass's values against its annotations, so that files, flags and Python calls meet one check."""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, Literal

from moebius.errors import ConfigError


def check_fields(section: str, config: Any) -> None:
    """Check (and where lossless convert: int to float, list to tuple) every field of a frozen dataclass in place.

    Raises ConfigError naming `section.field`, the value and what is allowed.
    """
    for name, annotation in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        try:
            converted = _convert(value, annotation)
        except TypeError as error:
            raise ConfigError(f"{section}.{name}={value!r}: {error}") from None
        object.__setattr__(config, name, converted)


def parse_text(text: str, annotation: Any) -> Any:
    """The value that `text`, typed as a flag's argument, stands for under `annotation`; the text itself if none does."""
    members = _members(annotation)
    if str in members or any(typing.get_origin(m) is Literal for m in members):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "," in text or text.startswith(("[", "(")):
        items = text.strip("[]() ").removesuffix(",")
        return [_number(item.strip()) for item in items.split(",")] if items else []
    return _number(text)


def at_least(section: str, config: object, name: str, lowest: float) -> None:
    if not getattr(config, name) >= lowest:
        raise ConfigError(f"{section}.{name}={getattr(config, name)}: must be at least {lowest}")


def above(section: str, config: object, name: str, bound: float) -> None:
    if not getattr(config, name) > bound:
        raise ConfigError(f"{section}.{name}={getattr(config, name)}: must be above {bound}")


def between(section: str, config: object, name: str, lowest: float, highest: float) -> None:
    if not lowest <= getattr(config, name) <= highest:
        raise ConfigError(f"{section}.{name}={getattr(config, name)}: must be from {lowest} to {highest}")


def nearest(name: str, allowed: typing.Iterable[str]) -> str:
    """`; did you mean X?` for the closest of `allowed`, or nothing."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _convert(value: Any, annotation: Any) -> Any:
    members = _members(annotation)
    for member in members:
        origin = typing.get_origin(member)
        if origin is Literal:
            if isinstance(value, str) and value in typing.get_args(member):
                return value
        elif origin is tuple:
            if isinstance(value, list | tuple) and value:
                item = typing.get_args(member)[0]
                return tuple(_convert(v, item) for v in value)
        elif member is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return _finite(value)
        elif member is str:
            if isinstance(value, str):
                return _storable(value)
        elif member is bool or dataclasses.is_dataclass(member):
            if type(value) is member:
                return value
        elif member is int and isinstance(value, int) and not isinstance(value, bool):
            return value
    raise TypeError(" or ".join(_describe(m) for m in members) + " is wanted" + _hint(value, members))


def _finite(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise TypeError("a finite number is wanted")
    return number


def _storable(text: str) -> str:
    # a flag's bytes that are not UTF-8 arrive as surrogates, which config.toml cannot hold; no path holds a null character
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TypeError("text in UTF-8 without null characters is wanted")
    return text


def _hint(value: Any, members: tuple[Any, ...]) -> str:
    for member in members:
        if typing.get_origin(member) is Literal and isinstance(value, str):
            return nearest(value, typing.get_args(member))
    return ""


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return f"a list of {_describe(typing.get_args(annotation)[0])}s".replace("an ", "").replace(
            "a list of a ", "a list of "
        )
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
