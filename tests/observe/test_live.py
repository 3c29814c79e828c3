"""The thread that draws: failures, streams that are taken and given back, terminals that hang."""

import io
import logging
import sys
import threading
import time
from typing import Any, cast

import pytest
from rich.console import Console

from moebius.data.output import Output
from moebius.observe import live as module
from moebius.observe.live import Live
from moebius.observe.paint import styled
from tests.emulator import Emulator, TerminalStream, wait_until


class Made:
    """A live view on a terminal in memory."""

    def __init__(self, draw: Any = None):
        self.terminal = Emulator(40, 6)
        self.stream = TerminalStream(self.terminal)
        self.text = "picture"
        output = Output(self.stream)
        console = Console(
            file=cast(Any, output), force_terminal=True, width=40, height=6, color_system=None
        )

        def rows(width: int, height: int) -> list[Any]:
            return [[styled(self.text.ljust(width))] for _ in range(height)]

        self.live = Live(draw or rows, lambda: self.text, console, output)


def test_it_draws_what_is_there_now_and_no_more_than_it_must(monkeypatch):
    made = Made()
    made.live.start()
    wait_until(lambda: made.terminal.shown[0] == "picture")
    made.text = "another"
    made.live.say("line \x1b[2J")
    wait_until(lambda: made.terminal.shown[0] == "another")
    made.live.stop()
    made.live.stop()
    assert made.terminal.log == ["line \\x1b[2J"]
    assert not [thread for thread in threading.enumerate() if thread.name == "live view"]


def test_a_picture_that_fails_ends_the_drawing_and_nothing_else():
    def fails(width: int, height: int) -> list[Any]:
        raise ZeroDivisionError("by zero")

    made = Made(fails)
    made.live.start()
    for number in range(3):
        made.live.say(f"line {number}")
    wait_until(lambda: "line 2" in made.terminal.log)
    made.live.stop()
    text = "".join(made.terminal.log)
    assert text.count("the live view has failed (ZeroDivisionError: by zero)") == 1
    assert all(f"line {number}" in text for number in range(3))


def test_what_python_writes_to_the_terminal_becomes_lines_of_the_log(monkeypatch):
    made = Made()
    monkeypatch.setattr(sys, "stdout", made.stream)
    monkeypatch.setattr(sys, "stderr", made.stream)
    handler = logging.StreamHandler(made.stream)
    logger = logging.getLogger("tests.live")
    logger.addHandler(handler)
    made.live.start()
    try:
        print("from print")
        print("10%\r20%\r\x1b[31mred\x1b[0m", file=sys.stderr)
        logger.error("from a logger")
        assert sys.stdout.isatty() and sys.stdout.encoding == made.stream.encoding
        sys.stdout.write("no end")
    finally:
        made.live.stop()
        logger.removeHandler(handler)
    assert sys.stdout is sys.stderr is handler.stream is made.stream
    assert made.terminal.log == ["from print", "red", "from a logger", "no end"]


def test_a_stream_that_is_no_terminal_is_left_alone(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    made = Made()
    made.live.start()
    assert sys.stderr is file
    made.live.stop()


def test_a_terminal_that_hangs_stops_nothing(monkeypatch):
    made = Made()
    is_open = threading.Event()
    monkeypatch.setattr(made.stream, "write", lambda text: is_open.wait(30) and len(text))
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    made.live.start()
    start = time.monotonic()
    for _ in range(1000):
        made.live.say("line")
    made.live.stop()
    assert time.monotonic() - start < 5
    is_open.set()


@pytest.mark.parametrize("height", [1, 2])
def test_a_terminal_of_hardly_any_rows(height):
    made = Made()
    made.live._console = Console(width=10, height=height)
    made.live.refresh()
