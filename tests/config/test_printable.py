"""Tests of showing a model's text on a terminal."""

import pytest

from moebius.config.printable import printable, printable_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("def f():\n\treturn 1\n", "def f():\n\treturn 1\n"),
        ("naïve 漢字 🙂\u3000\xa0", "naïve 漢字 🙂\u3000\xa0"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x00\x07\r\x7f\x9b", "\\x00\\x07\\r\\x7f\\x9b"),
        ("\x80\x85\x9d0;title\x9c", "\\x80\\x85\\x9d0;title\\x9c"),
        ("a\u202eb\u202c \u2066c\u2069", "a\\u202eb\\u202c \\u2066c\\u2069"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("שלום \u200f!", "שלום \u200f!"),
        ("\udcff", "\\udcff"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown


def test_a_line_stays_one():
    text = "a\n  b\tc\x1b]0;title\x07\r\n"
    assert printable_line(text) == "a b c\\x1b]0;title\\x07"
