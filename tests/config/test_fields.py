"""Values are checked and converted by a field's type and bounds."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from moebius.config.fields import (
    FilledText,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    above,
    at_least,
    between,
    bounds,
    check_fields,
    divisors,
    inside,
    members,
    settings,
)
from moebius.errors import ConfigError

Count = int | tuple[int, ...]
Kind = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Everything:
    whole: int = 1
    real: float = 1.0
    flag: bool = False
    text: str = ""
    kind: Kind = "auto"
    count: Count = 1

    def __post_init__(self) -> None:
        check_fields("all", self)


@dataclass(frozen=True)
class Bounded:
    positive: PositiveInt = 1
    natural: NonNegativeInt = 0
    rate: PositiveFloat = 1.0
    weight: NonNegativeFloat = 0.0
    share: Fraction = 0.5
    probability: Annotated[float, inside(0, 1)] = 0.5
    dropout: Annotated[float, between(0, 0.99)] = 0.0
    filled: FilledText = "x"
    counts: Annotated[Count, at_least(2)] = 2

    def __post_init__(self) -> None:
        check_fields("bounded", self)


def refusal(section: type, name: str, value: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        section(**{name: value})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("real", 3, 3.0),
        ("count", [2, 3], (2, 3)),
        ("count", (2,), (2,)),
        ("text", "grün 😀 \x7f", "grün 😀 \x7f"),
        ("whole", 1e3, 1000),
        ("whole", 2**63 - 1, 2**63 - 1),
        ("whole", -(10**30), -(10**30)),  # there is no lower bound for all settings
    ],
)
def test_what_loses_nothing_is_converted(name, value, kept):
    converted = getattr(Everything(**{name: value}), name)
    assert converted == kept and type(converted) is type(kept)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("whole", 1000.5, "all.whole=1000.5: must be an integer"),
        ("whole", 1e16, "all.whole=1e+16: must be an integer"),
        ("whole", math.inf, "all.whole=inf: must be an integer"),
        ("whole", math.nan, "all.whole=nan: must be an integer"),
        ("whole", True, "all.whole=True: must be an integer"),
        ("whole", 2**63, "all.whole=9223372036854775808: must be below 2**63"),
        pytest.param(
            "whole",
            16**9999,
            "all.whole=(an integer of thousands of digits): must be below 2**63",
            id="an integer that Python refuses to print",
        ),
        ("real", "x", "all.real='x': must be a number"),
        ("real", math.inf, "all.real=inf: must be a finite number"),
        ("real", math.nan, "all.real=nan: must be a finite number"),
        ("flag", 1, "all.flag=1: must be true or false"),
        ("text", 1, "all.text=1: must be text"),
        ("text", "a\0b", "all.text='a\\x00b': must be UTF-8 text without null characters"),
        ("text", "a\udcff", "all.text='a\\udcff': must be UTF-8 text without null characters"),
        ("kind", "onn", "all.kind='onn': must be one of auto, on, off; did you mean on?"),
        ("kind", "zzzz", "all.kind='zzzz': must be one of auto, on, off"),
        ("count", [], "all.count=[]: must be an integer or a list of integers"),
        ("count", [4, ""], "all.count=[4, '']: must be an integer"),
        ("count", (4, 2**64), "all.count=[4, 18446744073709551616]: must be below 2**63"),
    ],
)
def test_a_wrong_type_is_refused_in_one_line(name, value, message):
    assert refusal(Everything, name, value) == message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("positive", 0, "=0: must be at least 1"),
        ("natural", -1, "=-1: must be at least 0"),
        ("rate", 0, "=0.0: must be above 0"),
        ("weight", -0.5, "=-0.5: must be at least 0"),
        ("share", 1.1, "=1.1: must be from 0 to 1"),
        ("probability", 1, "=1.0: must be above 0 and below 1"),
        ("dropout", 1.0, "=1.0: must be from 0 to 0.99"),
        ("filled", " ", "=' ': must be non-empty"),
        ("counts", 1, "=1: must be at least 2"),
        ("counts", [3, 1], "=[3, 1]: must be at least 2"),
        ("positive", "1", "='1': must be an integer"),  # types are checked first
    ],
)
def test_a_value_out_of_bounds_is_refused_in_one_line(name, value, message):
    assert refusal(Bounded, name, value) == f"bounded.{name}{message}"


def test_the_bounds_of_a_closed_interval_are_allowed():
    for name, values in {"share": (0, 1), "dropout": (0, 0.99), "positive": (1,)}.items():
        for value in values:
            assert getattr(Bounded(**{name: value}), name) == value


def test_bounds_and_types_are_read_from_annotations():
    annotation = Annotated[int | tuple[int, ...], at_least(3), above(1)]
    assert [bound.requirement for bound in bounds(annotation)] == ["at least 3", "above 1"]
    assert members(annotation) == (int, tuple[int, ...])
    assert bounds(int) == [] and members(int) == (int,)


def test_settings_have_dotted_names():
    @dataclass(frozen=True)
    class Outer:
        inner: Bounded
        kind: Kind

    names = list(settings(Outer))
    assert names[:2] == ["inner.positive", "inner.natural"] and names[-1] == "kind"


@pytest.mark.parametrize(
    ("number", "multiple_of", "text"),
    [(28, 1, "1, 2, 4, 7, 14, 28"), (12, 3, "3, 6, 12"), (7, 2, "")],
)
def test_divisors(number, multiple_of, text):
    assert divisors(number, multiple_of) == text
    assert len(divisors(720720).split(", ")) == 12


@pytest.mark.parametrize("number", [2**63 - 1, 2**62, 2**61 - 1, 3 * (2**31 - 1)])
def test_divisors_of_huge_numbers_are_found_quickly(number):
    found = [int(divisor) for divisor in divisors(number).split(", ")]
    assert found == sorted(found) and found[0] == 1 and len(found) >= 2
    assert not any(number % divisor for divisor in found)
