"""The lower part of a terminal that is drawn again and again, with a log that scrolls above it.

The picture is as tall as the terminal, so that whatever scrolls out of it at the top is the log,
and the terminal's own scrollback holds every line of it. Nothing is ever cleared: rows are written
over, because terminals and tmux move a screen that is cleared into their scrollback. The alternate
screen is not used: a process that is killed could not leave it.
"""

from collections.abc import Callable, Sequence

from rich.cells import cell_len

BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
"""Before and after each picture: show nothing of it until it is whole. Terminals that do not know
synchronized output ignore it, and the others end it by themselves after a moment. The cursor is
not hidden: a process that is killed in the middle of a picture could not show it again."""
CLEAR_ROW, UP, DOWN = "\x1b[2K", "\x1b[{}A", "\x1b[{}B"


class Screen:
    """Draws on a terminal. Each picture, and the lines above it, is written at once."""

    def __init__(self, write: Callable[[str], object]):
        self._write = write
        self._rows: list[str] = []
        """The picture that is there. The cursor is at the beginning of its last row."""
        self._size = (0, 0)

    def draw(
        self, rows: Sequence[str], size: tuple[int, int], above: Sequence[str], is_whole: bool
    ) -> None:
        """Replace the picture, and print lines above it.

        rows: as many as the terminal has, none wider than it. size: columns and rows of the
        terminal. is_whole: whether rows that have not changed are written, too; this repairs what
        other programs have written over them.
        """
        rows = list(rows)
        if above or is_whole or size != self._size or len(rows) != len(self._rows):
            log = "".join(f"{CLEAR_ROW}{line}{_rest(line, size[0])}\n" for line in above)
            picture = "\n".join(f"{CLEAR_ROW}{row}" for row in rows)
            self._write(f"{BEGIN}{self._to_top()}{log}{picture}\r{END}")
        elif changed := [n for n, row in enumerate(rows) if row != self._rows[n]]:
            last = len(rows) - 1
            parts = (f"{_up(last - n)}\r{CLEAR_ROW}{rows[n]}{_down(last - n)}" for n in changed)
            self._write(f"{BEGIN}{''.join(parts)}\r{END}")
        self._rows, self._size = rows, size

    def erase(self, above: Sequence[str]) -> None:
        """Print lines, and remove the picture below them. The cursor is then below the lines."""
        log = "".join(f"{CLEAR_ROW}{line}{_rest(line, self._size[0])}\n" for line in above)
        blank = CLEAR_ROW
        if self._rows:
            last = len(self._rows) - 1
            blank = "\n".join([CLEAR_ROW] * len(self._rows)) + _up(last) + "\r"
        self._write(f"{BEGIN}{self._to_top()}{log}{blank}{END}")
        self._rows = []

    def _to_top(self) -> str:
        """Return what moves the cursor from the end of the picture to its beginning.

        If the terminal has become smaller, it stops at the top of the screen, and what is above
        has scrolled out of it.
        """
        return f"{_up(len(self._rows) - 1)}\r" if self._rows else ""


def _up(number: int) -> str:
    return UP.format(number) if number > 0 else ""


def _down(number: int) -> str:
    return DOWN.format(number) if number > 0 else ""


def _rest(line: str, width: int) -> str:
    """Return what clears the last row of a line that takes several, after which nothing is left.

    A row that is full must not be cleared: the cursor stands on its last character.
    """
    return "\x1b[K" if width and cell_len(line) % width else ""
