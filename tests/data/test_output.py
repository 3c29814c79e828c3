"""Output that cannot be written any more is reported once and then discarded."""

import io
import os
from typing import Any

import pytest

from moebius.data.output import Output


def pipe(reader: bool = True, **options: Any) -> tuple[int, io.TextIOWrapper]:
    """Return the two ends of a pipe, of which the first is closed without a reader."""
    reading, writing = os.pipe()
    if not reader:
        os.close(reading)
    return reading, io.TextIOWrapper(io.FileIO(writing, "w"), **options)


def test_text_is_written():
    reading, stream = pipe()
    output = Output(stream)
    lost: list[Exception] = []
    output.when_lost(lost.append)
    assert output.write("text\n") == 5
    output.flush()
    assert os.read(reading, 100) == b"text\n" and not lost
    assert not output.isatty() and output.fileno() == stream.fileno()


@pytest.mark.parametrize("is_early", [True, False])
def test_a_closed_pipe_is_reported_once(is_early):
    _, stream = pipe(reader=False)
    output = Output(stream)
    lost: list[Exception] = []
    if is_early:
        output.when_lost(lost.append)
    for _ in range(3):
        output.write("text\n")
        output.flush()
    output.when_lost(lost.append) if not is_early else None
    (error,) = lost
    assert isinstance(error, BrokenPipeError)


def test_a_stream_that_was_closed_here_is_lost_too():
    stream = io.StringIO()
    output = Output(stream)
    stream.close()
    lost: list[Exception] = []
    output.when_lost(lost.append)
    output.write("text")
    assert len(lost) == 1


def test_a_pipe_that_is_full_at_the_moment_is_not_lost():
    """Some programs set a terminal that they share to fail instead of to wait."""
    reading, stream = pipe()
    os.set_blocking(stream.fileno(), False)
    output = Output(stream)
    lost: list[Exception] = []
    output.when_lost(lost.append)
    for _ in range(40):
        output.write("x" * 10_000)
        output.flush()
    assert not lost
    os.read(reading, 400_000)


def test_what_the_stream_cannot_encode_is_escaped():
    reading, stream = pipe(encoding="ascii")
    output = Output(stream)
    output.write("é \udcff")
    output.flush()
    assert os.read(reading, 100) == b"\\xe9 \\udcff"


def test_a_terminal_stays_one_after_it_was_closed():
    """Otherwise rich would stop to draw, and nobody would notice that it is gone."""
    master, slave = os.openpty()
    output = Output(io.TextIOWrapper(io.FileIO(slave, "w")))
    os.close(master)
    assert not os.isatty(slave) and output.isatty()
    lost: list[Exception] = []
    output.when_lost(lost.append)
    output.write("text")
    output.flush()
    assert lost
