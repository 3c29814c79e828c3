"""The live view of a real run in a pseudo-terminal, and what remains when it ends."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

from tests.cli.command_line import SECONDS, micro
from tests.emulator import Emulator


def trained_in(
    terminal: Emulator, flags: list[str], number: int | None, **environment: str
) -> Any:
    """Train in a pseudo-terminal, and return the process once it has ended.

    number: a signal to send after two steps are logged.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(
        slave, termios.TIOCSWINSZ, struct.pack("HHHH", terminal.rows, terminal.columns, 0, 0)
    )
    variables = {**os.environ, "TERM": "xterm-256color", **environment}
    for name in ("COLUMNS", "LINES"):
        variables.pop(name, None)
    words = [sys.executable, "-m", "moebius", "train", *flags]
    process = subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, env=variables, start_new_session=True
    )
    os.close(slave)
    text = b""
    try:
        while data := os.read(master, 65536):
            text += data
            if number is not None and text.count(b"  loss ") >= 2:
                process.send_signal(number)
                number = None
    except OSError:  # the terminal has no other end any more
        pass
    os.close(master)
    process.wait(SECONDS)
    terminal.feed(text.decode(errors="replace").replace("\r\n", "\n"))
    return process


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("number", "code"), [(None, 0), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_the_log_remains_and_nothing_else(number, code, trained, tmp_path):
    terminal = Emulator(80, 24)
    steps = 10 if number is None else 100_000
    flags = micro(trained, train__out=tmp_path, train__name="run", train__steps=steps)
    process = trained_in(terminal, flags, number)
    assert process.returncode == code
    text = "".join(terminal.log)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    for line in logged[:50]:
        assert f"step {line['step']}/{steps}  loss {line['loss']:.3f}" in text
    assert "report:        " in text and text.count("parameters  ") == 1
    for part in ("│", "┤", "─", "━", "tok/s  MFU"):
        assert part not in text
    assert terminal.is_cursor_shown and not terminal.is_synchronized and not terminal.begun
    if number is not None:
        assert "moebius: stopped at step" in text


@pytest.mark.heavy
def test_a_dumb_terminal_gets_plain_lines(trained, tmp_path):
    terminal = Emulator(80, 24)
    flags = micro(trained, train__out=tmp_path, train__name="run")
    assert trained_in(terminal, flags, None, TERM="dumb").returncode == 0
    assert "step 10/10  loss " in "".join(terminal.log)


@pytest.mark.heavy
def test_a_process_that_is_killed_leaves_the_cursor(trained, tmp_path):
    terminal = Emulator(80, 24)
    flags = micro(trained, train__out=tmp_path, train__name="run", train__steps=100_000)
    assert trained_in(terminal, flags, signal.SIGKILL).returncode == -9
    assert terminal.is_cursor_shown


def test_a_control_sequence_that_is_cut_off_waits_for_its_rest():
    terminal = Emulator(80, 24)
    for part in ("a\x1b", "[", "?25", "lb\x1b[3"):
        terminal.feed(part)
    assert terminal.log == ["ab"] and not terminal.is_cursor_shown and terminal.begun == "\x1b[3"
    with pytest.raises(ValueError, match="x"):
        terminal.feed("\x1b]x")
