"""Lines for the user are safe for the terminal, and a closed stream is no reason to stop."""

import io
import os
import sys

import pytest

from moebius.cli.output import discard_unwritable, finish, is_terminal, say
from moebius.config.printable import complain
from tests.pipes import closed_pipe


def test_lines_have_no_control_characters(capsys):
    say("\x1b]0;title\x07\nsecond \u202e")
    complain("\x9b2J\n  second")
    out, err = capsys.readouterr()
    assert out == "\\x1b]0;title\\x07\nsecond \\u202e\n"
    assert err == "moebius: \\x9b2J second\n"


@pytest.mark.parametrize("is_buffered", [True, False])
def test_what_could_not_be_said_fails_at_the_end(is_buffered, monkeypatch):
    monkeypatch.setattr(sys, "stdout", closed_pipe(is_buffered))
    monkeypatch.setattr(sys, "stderr", closed_pipe(is_buffered))
    say("a line")
    say("another")
    complain("a line")
    with pytest.raises(BrokenPipeError):
        finish()
    for stream in (sys.stdout, sys.stderr):
        assert discard_unwritable(stream) == is_buffered  # it is empty already
        assert not discard_unwritable(stream)
        stream.close()  # as Python does when it exits
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    finish()  # nothing is left to report


def test_no_stream_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("a line")
    complain("a line")
    assert not is_terminal(sys.stdout) and not discard_unwritable(sys.stderr)


def test_a_terminal():
    _, slave = os.openpty()
    with os.fdopen(slave, "w") as stream:
        assert is_terminal(stream)
