"""Colors: those of the terminal, none with NO_COLOR; and ASCII where there is nothing else."""

import io

import pytest
from rich.console import Console

from moebius.observe.paint import Paint
from moebius.observe.view import View
from tests.observe.made_up_view import made_up


def painted(console: Console) -> str:
    paint = Paint(console)
    return "\n".join(paint.text(row) for row in View(made_up(2, 8, "collapsed")).rows(80, 24))


def test_a_terminal_with_colors():
    text = painted(Console(file=io.StringIO(), force_terminal=True, color_system="256"))
    for code in ("\x1b[1;31m", "\x1b[36m", "\x1b[1;35m"):
        assert code in text
    assert text.count("\x1b[0m") > 20


def test_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = painted(Console(file=io.StringIO(), force_terminal=True, color_system="256"))
    codes = {part.partition("m")[0] for part in text.split("\x1b[")[1:]}
    assert codes <= {"0", "1", "2"} and "x" in text  # bold and dim, and shapes tell the rest


def test_without_a_color_system_there_are_no_codes():
    assert "\x1b" not in painted(Console(file=io.StringIO(), color_system=None))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode(encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    text = painted(Console(file=file, force_terminal=True, color_system="standard"))
    assert text.isascii() and "#####" in text and "***" in text
