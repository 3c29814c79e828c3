"""Tests of showing a model's text on a terminal."""

import pytest

from moebius.cli.sample import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("def f():\n\treturn 1\n", "def f():\n\treturn 1\n"),
        ("naïve 漢字 🙂\u3000\xa0", "naïve 漢字 🙂\u3000\xa0"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x00\x07\r\x7f\x9b", "\\x00\\x07\\r\\x7f\\x9b"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown
