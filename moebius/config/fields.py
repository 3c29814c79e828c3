"""The type and bounds of each setting, declared next to it, and the check of both.

    lr: PositiveFloat = 6e-4
    router_jitter: Annotated[float, between(0, 0.99)] = 0.0

Files, flags and Python calls all go through this one check, and the help reads the same
declarations.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

from moebius.config.suggestions import nearest, value_suggestion
from moebius.errors import ConfigError

INTEGER_LIMIT = 2**63
"""Integers must stay below this limit: TOML, torch and numpy store them in 64 bits."""
HIGHEST_DIVISOR = 2**16
"""Divisors are looked for up to this number, so that a huge number is refused quickly, too."""

EXACT_LIMIT = 2**53
"""Every integer below this limit is a floating-point number exactly, so that 1e3 is 1000."""


class Bound(NamedTuple):
    """A condition that a value of the right type must also meet. In a list, every item must."""

    holds: Callable[[Any], bool]
    """Return whether a value meets the condition."""
    requirement: str
    """The condition in words, for errors and for the help: `at least 1`."""


def at_least(lowest: float) -> Bound:
    """Return the bound `value >= lowest`."""
    return Bound(lambda value: value >= lowest, f"at least {lowest}")


def above(limit: float) -> Bound:
    """Return the bound `value > limit`."""
    return Bound(lambda value: value > limit, f"above {limit}")


def between(lowest: float, highest: float) -> Bound:
    """Return the bound `lowest <= value <= highest`."""
    return Bound(lambda value: lowest <= value <= highest, f"from {lowest} to {highest}")


def inside(lowest: float, highest: float) -> Bound:
    """Return the bound `lowest < value < highest`."""
    return Bound(lambda value: lowest < value < highest, f"above {lowest} and below {highest}")


PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, above(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
Fraction = Annotated[float, between(0, 1)]
FilledText = Annotated[str, Bound(lambda text: bool(text.strip()), "non-empty")]


def check_fields(section: str, config: Any) -> None:
    """Check every field of a frozen dataclass against its annotation and bounds.

    Values are converted where nothing is lost: an int to a float, 1e3 to an int, a list to a
    tuple. `section` is the dataclass's dotted name in the configuration. Raises ConfigError, in
    one line that names `section.field`, the value and what is allowed.
    """
    for name, annotation in annotations(type(config)).items():
        value = getattr(config, name)
        try:
            converted = _convert(value, annotation)
        except TypeError as error:
            hint = _value_hint(f"{section}.{name}", value, annotation)
            raise ConfigError(f"{section}.{name}={shown(value)}: {error}{hint}") from None
        items = converted if isinstance(converted, tuple) else (converted,)
        for bound in bounds(annotation):
            if not all(bound.holds(item) for item in items):
                raise ConfigError(
                    f"{section}.{name}={shown(converted)}: must be {bound.requirement}"
                )
        object.__setattr__(config, name, converted)


@functools.lru_cache(maxsize=64)
def annotations(section: type) -> dict[str, Any]:
    """Return a dataclass's annotations by field name, bounds included."""
    return typing.get_type_hints(section, include_extras=True)


def settings(section: type, path: str = "") -> dict[str, Any]:
    """Return the annotation of every setting below a section, nested sections included.

    Keys are dotted names that begin with `path`: those of `Config` are `model.vocab_size`, ...,
    `observe.cv.threshold`, ....
    """
    result: dict[str, Any] = {}
    for name, annotation in annotations(section).items():
        if dataclasses.is_dataclass(annotation):
            result |= settings(typing.cast(type, annotation), f"{path}{name}.")
        else:
            result[f"{path}{name}"] = annotation
    return result


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a value may have: the members of a union, without bounds."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def bounds(annotation: Any) -> list[Bound]:
    """Return the conditions that an annotation sets in addition to the type."""
    metadata = getattr(annotation, "__metadata__", ())
    return [item for item in metadata if isinstance(item, Bound)]


def divisors(number: int, multiple_of: int = 1) -> str:
    """Return up to twelve divisors of `number` that are multiples of `multiple_of`, as text."""
    highest = min(math.isqrt(number), HIGHEST_DIVISOR)
    small = [d for d in range(1, highest + 1) if number % d == 0]
    fitting = sorted(d for d in {*small, *(number // d for d in small)} if d % multiple_of == 0)
    return ", ".join(map(str, fitting[:12]))


def shown(value: Any) -> str:
    """Return a value as an error shows it: as Python writes it, a tuple as a list."""
    try:
        return repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return "(an integer of thousands of digits)"


def plain(value: Any) -> Any:
    """Return a setting's value as JSON has it: a tuple as a list, and a table as an object."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return value


def is_exact_integer(value: float) -> bool:
    """Return whether a floating-point number stands for one integer, as 1e3 does."""
    return value.is_integer() and abs(value) < EXACT_LIMIT


def _convert(value: Any, annotation: Any) -> Any:
    """Return `value` converted to the first type of `annotation` that holds it without loss.

    Raises TypeError, whose text ends the line of the error, if there is no such type.
    """
    for member in members(annotation):
        origin = typing.get_origin(member)
        if origin is Literal:
            if isinstance(value, str) and value in typing.get_args(member):
                return value
        elif origin is tuple:
            kind = typing.get_args(member)[0]
            may_be_empty = dataclasses.is_dataclass(kind)
            if isinstance(value, list | tuple) and (value or may_be_empty):
                return tuple(_convert(item, kind) for item in value)
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
            if value >= INTEGER_LIMIT:
                raise TypeError("must be below 2**63")
            return value
        elif member is int and isinstance(value, float) and is_exact_integer(value):
            return int(value)
    raise TypeError(f"must be {_description(annotation)}")


def _finite(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise TypeError("must be a finite number")
    return number


def _storable(text: str) -> str:
    # Bytes of a flag that are not UTF-8 arrive as surrogates, which config.toml cannot hold.
    # No path can contain a null character.
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TypeError("must be UTF-8 text without null characters")
    return text


def _value_hint(name: str, value: Any, annotation: Any) -> str:
    """Return `; did you mean X?` for the choice that a wrong value probably meant, or ""."""
    choices = [choice for member in members(annotation) for choice in _choices(member)]
    if suggested := value_suggestion(name, value):
        return f"; did you mean {suggested}?"
    if members(annotation) == (str,) and isinstance(value, list | tuple):
        return "; several are one text with commas between them, such as 'a,b'"
    return nearest(value, choices) if isinstance(value, str) else ""


_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "integers", float: "numbers", str: "texts"}


def _description(annotation: Any) -> str:
    """Return the types of an annotation in words: `an integer or a list of integers`."""
    descriptions = []
    for member in members(annotation):
        if choices := _choices(member):
            descriptions.append("one of " + ", ".join(choices))
        elif typing.get_origin(member) is tuple:
            kind = typing.get_args(member)[0]
            descriptions.append(f"a list of {_PLURALS.get(kind, 'tables')}")
        else:
            descriptions.append(_NAMES.get(member, f"of type {member.__name__}"))
    return " or ".join(descriptions)


def _choices(member: Any) -> tuple[str, ...]:
    return typing.get_args(member) if typing.get_origin(member) is Literal else ()
