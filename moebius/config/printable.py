"""Make text safe for a terminal, and print lines on stderr.

A corpus may contain terminal sequences, a model may have learned them, and a file may be named
after one. Shown as they are, they could set the terminal's title, hide text, or worse.
"""

import functools
import re
import sys
from contextlib import suppress

CONTROL_CHARACTERS = re.compile(
    "[^\n\t -~\xa0-\U0010ffff]"  # the control characters of ASCII and of Latin-1
    "|[\u202a-\u202e\u2066-\u2069]"  # change the direction of text (trojansource.codes)
    "|[\u2028\u2029]"  # begin a new line
    "|[\ud800-\udfff]"  # bytes that are not UTF-8, as Python represents them
)


def printable(text: str) -> str:
    """Return the text with control characters escaped, except for new lines and tabs."""
    return CONTROL_CHARACTERS.sub(
        lambda match: match.group().encode("unicode_escape").decode(), text
    )


def printable_line(text: str) -> str:
    """Return the text as one line with control characters escaped."""
    return printable(" ".join(text.split()))


def complain(line: str) -> None:
    """Print a line on stderr, after the program's name, if stderr is open."""
    if sys.stderr is not None:  # print would take stdout instead
        with suppress(OSError):
            print(f"moebius: {printable_line(line)}", file=sys.stderr, flush=True)


@functools.cache  # a run's config.toml is read several times by one command
def print_note(note: str) -> None:
    """Print a line on stderr as `complain` does, once per process."""
    complain(note)
