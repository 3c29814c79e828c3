"""The colors of the live view, and rows of styled text as what a terminal understands."""

from collections.abc import Sequence

from rich.console import COLOR_SYSTEMS, Console
from rich.segment import Segment
from rich.style import Style

from moebius.observe.heat_strip import DEAD

Row = list[Segment]
"""A row of a terminal."""

STYLES = {
    name: Style.parse(words)
    for name, words in {
        "name": "bold",
        "quiet": "dim",
        "good": "bold green",
        "warn": "bold yellow",
        "bad": "bold red",
        "calm": "bold cyan",
        "figure": "bold",
        "bar": "cyan",
        "curve": "cyan",
        "held_out": "magenta",
        "alarm": "red",
        "action": "yellow",
        "skipped": "red",
        "over": "green",
        "checkpoint": "dim",
    }.items()
}
LEVELS = {
    level: Style.parse(words)
    for level, words in {
        DEAD: "bold magenta",
        0: "blue",
        1: "bright_blue",
        2: "cyan",
        3: "green",
        4: "yellow",
        5: "bright_red",
        6: "bold red",
    }.items()
}
"""The colors of a heat strip: blue for too little, green for an even share, red for too much. They
are the terminal's own, which suit its background."""
_ASCII = str.maketrans(
    {
        "▁": ".",
        "▂": ":",
        "▃": "-",
        "▄": "=",
        "▅": "+",
        "▆": "#",
        "█": "@",
        "━": "#",
        "─": "-",
        "└": "+",
        "┤": "|",
        "│": "|",
        "◆": "o",
        "▸": ">",
        "…": "~",
    }
    | {chr(code): "*" for code in range(0x2800, 0x2900)}
)
"""What stands for each character on a terminal that has only those of ASCII."""


def styled(text: str, style: str = "") -> Segment:
    """Return text in one of the `STYLES`."""
    return Segment(text, STYLES.get(style))


def fitted(row: Row, width: int) -> Row:
    """Return the row cut off or filled up to a width."""
    return Segment.adjust_line_length(row, width)


class Paint:
    """Turns rows into text with the codes for the colors that a terminal has.

    NO_COLOR leaves bold and dim text, and nothing else.
    """

    def __init__(self, console: Console):
        self._is_ascii = console.options.ascii_only
        self._system = COLOR_SYSTEMS.get(console.color_system or "")
        self._has_color = not console.no_color
        self._codes: dict[int, tuple[Style, str, str]] = {}
        """What comes before and after a text of each style, by the style's identity: comparing
        styles takes longer than painting."""

    def text(self, row: Sequence[Segment]) -> str:
        """Return a row as text to write."""
        parts: list[str] = []
        for text, style, _ in row:
            if style is None or self._system is None:
                parts.append(text)
            else:
                _, before, after = self._codes.get(id(style)) or self._added(style)
                parts += before, text, after
        painted = "".join(parts)
        return painted.translate(_ASCII) if self._is_ascii else painted

    def _added(self, style: Style) -> tuple[Style, str, str]:
        """Return a style with what comes before and after a text of it."""
        shown = style if self._has_color else style.without_color
        before, _, after = shown.render("|", color_system=self._system).partition("|")
        codes = self._codes[id(style)] = style, before, after
        return codes
