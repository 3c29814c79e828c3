"""Text to values by their annotation, and values held against it."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from moebius.errors import ConfigError
from moebius.fields import check_fields, nearest, parse_text

Count = int | tuple[int, ...]
Kind = Literal["auto", "on", "off"]


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("12", int, 12),
        ("-3", int, -3),
        ("1_000", int, 1000),
        ("1e3", int, 1000.0),  # no integer: the check that follows refuses it
        ("5", float, 5),
        ("1e-05", float, 1e-05),
        ("-.5", float, -0.5),
        ("1e400", float, float("inf")),
        ("many", int, "many"),
        ("", float, ""),
        ("true", bool, True),
        ("True", bool, True),
        ("FALSE", bool, False),
        ("yes", bool, "yes"),
        ("1", bool, 1),
        ("4", Count, 4),
        ("4,4,8,8", Count, [4, 4, 8, 8]),
        ("[4,8]", Count, [4, 8]),
        ("[4, 8]", Count, [4, 8]),
        ("(4,)", Count, [4]),
        ("4,", Count, [4]),
        ("[]", Count, []),
        ("4,,8", Count, [4, "", 8]),
        ("4,x", Count, [4, "x"]),
        ("12", str, "12"),
        ("true", str, "true"),
        ("[a,b]", str, "[a,b]"),
        ("", str, ""),
        ("on", Kind, "on"),
        ("1", Kind, "1"),
    ],
)
def test_what_a_text_stands_for(text, annotation, value):
    parsed = parse_text(text, annotation)
    assert parsed == value and type(parsed) is type(value)


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


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [("real", 3, 3.0), ("count", [2, 3], (2, 3)), ("count", (2,), (2,)), ("text", "grün 😀 \x7f", "grün 😀 \x7f")],
)
def test_what_is_lossless_is_converted(name, value, kept):
    found = getattr(Everything(**{name: value}), name)
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("whole", 1000.0, "all.whole=1000.0: an integer is wanted"),
        ("whole", True, "all.whole=True: an integer is wanted"),
        ("real", "x", "all.real='x': a number is wanted"),
        ("flag", 1, "all.flag=1: true or false is wanted"),
        ("text", 1, "all.text=1: text is wanted"),
        ("text", "a\0b", "all.text='a\\x00b': text in UTF-8 without null characters is wanted"),
        ("text", "a\udcff", "all.text='a\\udcff': text in UTF-8 without null characters is wanted"),
        ("kind", "onn", "all.kind='onn': one of auto, on, off is wanted; did you mean on?"),
        ("kind", "zzzz", "all.kind='zzzz': one of auto, on, off is wanted"),
        ("count", [], "all.count=[]: an integer or a list of integers is wanted"),
        ("count", [4, ""], "all.count=[4, '']: an integer is wanted"),
    ],
)
def test_refused_in_one_line(name, value, wanted):
    with pytest.raises(ConfigError) as refused:
        Everything(**{name: value})
    assert str(refused.value) == wanted


def test_the_nearest_name():
    names: Any = ["router_top_k", "router_threshold", "dim"]
    assert nearest("router_topk", names) == "; did you mean router_top_k?"
    assert nearest("zzz", names) == ""
