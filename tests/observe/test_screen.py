"""What remains on a terminal: its scrollback is the log, and nothing of a picture is in it."""

import pytest

from moebius.observe.screen import Screen
from tests.emulator import Emulator


def started(columns: int = 20, rows: int = 5) -> tuple[Emulator, Screen]:
    terminal = Emulator(columns, rows)
    terminal.feed("before\n")
    return terminal, Screen(terminal.feed)


def picture(terminal: Emulator, name: str) -> list[str]:
    return [f"{name}{row}".ljust(terminal.columns) for row in range(terminal.rows - 1)] + [""]


def draw(
    terminal: Emulator, screen: Screen, name: str, *above: str, is_whole: bool = True
) -> None:
    size = terminal.columns, terminal.rows
    screen.draw(picture(terminal, name), size, above, is_whole)


def test_the_log_scrolls_above_the_picture():
    terminal, screen = started()
    draw(terminal, screen, "a")
    assert terminal.shown == ["a0", "a1", "a2", "a3", ""] and terminal.scrollback == ["before"]
    draw(terminal, screen, "b", "one", "two")
    draw(terminal, screen, "c", "three")
    assert terminal.shown == ["c0", "c1", "c2", "c3", ""]
    assert terminal.scrollback == ["before", "one", "two", "three"]
    screen.erase(["four"])
    terminal.feed("after\n")
    assert terminal.log == ["before", "one", "two", "three", "four", "after"]
    assert terminal.is_cursor_shown and not terminal.is_synchronized


@pytest.mark.parametrize("length", [19, 20, 21, 40, 41, 99])
def test_long_lines_are_wrapped_by_the_terminal_and_leave_nothing_behind(length):
    terminal, screen = started()
    draw(terminal, screen, "a")
    draw(terminal, screen, "b", "x" * length)
    assert terminal.shown[0] == "b0"
    assert "".join(terminal.scrollback[1:]) == "x" * length
    assert all(set(row) == {"x"} for row in terminal.scrollback[1:])


def test_only_rows_that_have_changed_are_written():
    terminal, screen = started()
    draw(terminal, screen, "a")
    written: list[str] = []
    screen._write = lambda text: (written.append(text), terminal.feed(text))
    rows = picture(terminal, "a")
    rows[1] = "new".ljust(20)
    screen.draw(rows, (20, 5), [], False)
    assert terminal.shown == ["a0", "new", "a2", "a3", ""] and (terminal.row, terminal.column) == (
        4,
        0,
    )
    assert "a2" not in written[0]
    screen.draw(rows, (20, 5), [], False)
    assert len(written) == 1


@pytest.mark.parametrize("size", [(30, 8), (10, 3), (30, 3), (10, 8), (20, 1)])
def test_a_resize_keeps_the_log(size):
    terminal, screen = started()
    draw(terminal, screen, "a", "one")
    terminal.resize(*size)
    draw(terminal, screen, "b", "two", is_whole=False)
    assert terminal.shown == [row.rstrip() for row in picture(terminal, "b")]
    log = [row for row in terminal.scrollback if not row.startswith("a")]
    assert log == ["before", "one", "two"]


def test_what_others_write_is_repaired_by_the_next_whole_picture():
    terminal, screen = started()
    draw(terminal, screen, "a")
    terminal.feed("^C\nwarning\n")
    draw(terminal, screen, "b")
    assert terminal.shown == ["b0", "b1", "b2", "b3", ""]
    screen.erase([])
    assert terminal.shown == [""] * 5


def test_lines_without_a_picture():
    terminal, screen = started()
    screen.erase(["one", "two"])
    assert terminal.log == ["before", "one", "two"]
