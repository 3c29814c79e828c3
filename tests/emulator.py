"""A terminal in memory, for tests of what remains on it. It knows what the live view writes."""

import io
import re
import time
from collections.abc import Callable

_CUT_OFF = re.compile(r"\x1b(\[[?0-9;]*)?\Z")
_CONTROL = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\r|\n)|([^\x1b\r\n]+)")


class Emulator:
    """A screen with its scrollback. Lines wrap, and what scrolls out at the top is kept."""

    def __init__(self, columns: int, rows: int):
        self.columns, self.rows = columns, rows
        self.scrollback: list[str] = []
        self.screen: list[list[str]] = [[" "] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.is_cursor_shown = self.is_synchronized = True
        self.begun = ""  # of a control sequence whose rest has not come

    def feed(self, text: str) -> None:
        """Take what a program writes. Raises ValueError for what this terminal does not know.

        A control sequence that is cut off, as a process that is killed leaves it, waits for its
        rest.
        """
        text = self.begun + text
        cut_off = _CUT_OFF.search(text)
        self.begun = cut_off.group() if cut_off else ""
        text, end = text.removesuffix(self.begun), 0
        for match in _CONTROL.finditer(text):
            if match.start() != end:
                raise ValueError(text[end : end + 20])
            end = match.end()
            arguments, letter, control, characters = match.groups()
            if letter:
                self._command(arguments, letter)
            elif control == "\r":
                self.column = 0
            elif control:
                self.column = 0  # as terminals are set, a new line begins at the left
                self._down()
            else:
                for character in characters:
                    self._put(character)
        if end != len(text):
            raise ValueError(text[end:])

    @property
    def shown(self) -> list[str]:
        """The rows of the screen."""
        return ["".join(row).rstrip() for row in self.screen]

    @property
    def log(self) -> list[str]:
        """The rows of the scrollback and of the screen, without empty ones at the end."""
        text = "\n".join([*self.scrollback, *self.shown]).rstrip()
        return text.split("\n")

    def resize(self, columns: int, rows: int) -> None:
        """Change the size, as xterm does: rows are cut off, and the cursor's row stays."""
        while rows < len(self.screen):
            if self.row == len(self.screen) - 1:
                self.scrollback.append("".join(self.screen.pop(0)).rstrip())
                self.row -= 1
            else:
                self.screen.pop()
        self.screen += [[] for _ in range(rows - len(self.screen))]
        self.screen = [[*row, *" " * columns][:columns] for row in self.screen]
        self.columns, self.rows = columns, rows
        self.column = min(self.column, columns)

    def _put(self, character: str) -> None:
        if self.column == self.columns:
            self.column = 0
            self._down()
        self.screen[self.row][self.column] = character
        self.column += 1

    def _down(self) -> None:
        if self.row == self.rows - 1:
            self.scrollback.append("".join(self.screen.pop(0)).rstrip())
            self.screen.append([" "] * self.columns)
        else:
            self.row += 1

    def _command(self, arguments: str, letter: str) -> None:
        if letter == "m":
            return
        if arguments in ("?25", "?2026"):
            name = "is_cursor_shown" if arguments == "?25" else "is_synchronized"
            setattr(self, name, letter == "h")
        elif letter in "AB":
            step = int(arguments) if letter == "B" else -int(arguments)
            self.row = min(self.rows - 1, max(0, self.row + step))
        elif letter == "K":
            first = 0 if arguments == "2" else min(self.column, self.columns - 1)
            self.screen[self.row][first:] = [" "] * (self.columns - first)
        else:
            raise ValueError(f"{arguments}{letter}")


class TerminalStream(io.StringIO):
    """A text stream that writes on such a terminal."""

    def __init__(self, terminal: Emulator):
        super().__init__()
        self.terminal = terminal

    def write(self, text: str) -> int:
        """Show the text."""
        self.terminal.feed(text)
        return len(text)

    def isatty(self) -> bool:
        """Return that this is a terminal."""
        return True


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so. Raises AssertionError if it takes too long."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)
