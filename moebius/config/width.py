"""How wide a text may be on this terminal, and lines that are folded to it.

Text for people is folded on a terminal. In a pipe or a file every fact stays on one line, because
scripts read it, and so that it is the same whatever terminal the command was started from.
"""

import shutil
import sys
from collections.abc import Iterable, Iterator
from textwrap import wrap

WIDEST = 100
"""Longer lines are hard to read, however wide the terminal is."""
NARROWEST = 40
"""Narrower terminals get lines of this width, because columns need some room."""
UNKNOWN = 80
"""Width where there is no terminal that could be asked."""


def text_width() -> int:
    """Return the number of columns that text for people may take."""
    columns = shutil.get_terminal_size((UNKNOWN, 24)).columns
    return max(NARROWEST, min(WIDEST, columns))


def folded(lines: Iterable[str], indent: int) -> Iterator[str]:
    """Yield lines, folded to `text_width` if stdout is a terminal, with `indent` on later ones."""
    for line in lines:
        if sys.stdout is not None and sys.stdout.isatty() and len(line) > text_width():
            yield from wrap(
                line,
                text_width(),
                subsequent_indent=" " * indent,
                break_on_hyphens=False,
                break_long_words=False,
            )
        else:
            yield line
