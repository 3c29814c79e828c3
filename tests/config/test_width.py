"""Tests of lines that are folded to the width of a terminal, and only there."""

import io
import re

import pytest

from moebius.config.width import folded, text_width

LINES = ["name    " + "word " * 30 + "end", "short   text"]


class Terminal(io.StringIO):
    """A stdout that somebody sees."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("columns", "width"), [("80", 80), ("100", 100), ("250", 100), ("60", 60), ("3", 40), ("", 80)]
)
def test_the_width_is_that_of_the_terminal_within_limits(columns, width, monkeypatch):
    monkeypatch.setattr("sys.__stdout__", None)  # there is no terminal that could be asked
    monkeypatch.setenv("COLUMNS", columns)
    assert text_width() == width


def test_a_long_line_is_folded_under_its_text(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout", Terminal())
    lines = list(folded(LINES, 8))
    assert len(lines) > 3 and lines[-1] == LINES[1] and lines[0].startswith("name    word word")
    assert all(len(line) <= 60 for line in lines)
    assert all(re.match(" {8}(word|end)", line) for line in lines[1:-1])
    assert " ".join(lines[:-1]).split() == LINES[0].split()


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_in_a_pipe_every_fact_is_one_line(stream, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout", stream)
    assert list(folded(LINES, 8)) == LINES
