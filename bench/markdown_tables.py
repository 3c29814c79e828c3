"""Titles and tables in Markdown."""

from collections.abc import Iterator

from interleaved import Timed


def title(text: str, what: str) -> Iterator[str]:
    """Yield a heading, and a sentence that says what the table under it shows."""
    yield f"\n### {text}\n{what[0].upper()}{what[1:]}.\n"


def table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield a table."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def milliseconds(timed: Timed) -> str:
    """Return the time of a contender, or why it failed."""
    return timed.error or f"{timed.ms:.2f}"


def gigabytes(timed: Timed, decimals: int = 2) -> str:
    """Return the peak memory of a contender without its unit; empty where it is not known."""
    return f"{timed.peak_bytes / 1e9:.{decimals}f}" if timed.peak_bytes else ""
