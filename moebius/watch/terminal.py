"""Show runs in the terminal while other processes train them, or print what happens to them."""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

from rich.console import Console

from moebius.data.output import Output
from moebius.observe.live import Live, can_draw
from moebius.observe.paint import Paint, Row, styled
from moebius.observe.view import View
from moebius.watch.watched import WatchedRun

POLL_SECONDS = 1.0
"""Time between two looks at the files."""
NARROWEST, LOWEST = 60, 8
"""Columns and rows that the picture of a run needs. With less room, runs are beside or above each
other in other ways, and those that do not fit are named."""

Print = Callable[[str], None]


def watch(runs: Sequence[WatchedRun], is_once: bool, say: Print) -> None:
    """Show the runs until nobody looks any more.

    On a terminal, the view goes on until a signal ends it. Elsewhere a line is printed for each
    logged step and event, until no process trains any of the runs. With `is_once`, what is known
    now is shown, and that is all. `say` prints a line.
    """
    output = Output(sys.stdout)
    console = Console(file=cast(Any, output), highlight=False)
    is_shown = can_draw(console, output)
    said = [run.update() for run in runs]
    if is_once and is_shown:
        paint = Paint(console)
        for row in picture([View(run.so_far) for run in runs], console.width, console.height - 1):
            output.write(f"{paint.text(row)}\n")
    elif is_once:
        for run in runs:
            say(run.summary)
    elif is_shown:
        _show(runs, console, output, say)
    else:
        _follow(runs, said, output, say)


def _show(runs: Sequence[WatchedRun], console: Console, output: Output, say: Print) -> None:
    """Draw the runs until a signal comes, or the terminal is closed."""
    views = [View(run.so_far) for run in runs]
    lost = threading.Event()
    output.when_lost(lambda error: lost.set())
    live = Live(
        lambda width, height: picture(views, width, height),
        lambda: [run.so_far.version for run in runs],
        console,
        output,
    )
    live.start()
    try:
        while not lost.wait(POLL_SECONDS):
            for run in runs:
                run.update()
    finally:
        live.stop()
        if not lost.is_set():
            for run in runs:
                say(run.summary)


def _follow(
    runs: Sequence[WatchedRun], said: Sequence[Sequence[str]], output: Output, say: Print
) -> None:
    """Print what happens, from the latest logged step on, until no run is trained."""
    is_single = len(runs) == 1
    lost = threading.Event()
    output.when_lost(lambda error: lost.set())

    def tell(run: WatchedRun, lines: Sequence[str]) -> None:
        for line in lines:
            say(line if is_single else f"{run.so_far.name}: {line}")

    for run, lines in zip(runs, said, strict=True):
        tell(run, [line for line in lines if line.startswith("step ")][-1:])
    while any(run.is_trained for run in runs) and not lost.wait(POLL_SECONDS):
        for run in runs:
            tell(run, run.update())
    for run in runs:
        say(run.summary)


def picture(views: Sequence[View], width: int, height: int) -> list[Row]:
    """Return the runs side by side or, where that is too narrow, above each other."""
    columns = max(1, min(len(views), width // NARROWEST))
    rows = -(-len(views) // columns)
    most = max(1, height // LOWEST)
    left_out = list(views)[columns * most :] if rows > most else []
    shown = list(views)[: len(views) - len(left_out)]
    rows = min(rows, most)
    room = height - bool(left_out)
    drawn: list[Row] = []
    for number in range(rows):
        beside = shown[number * columns : (number + 1) * columns]
        tall = room * (number + 1) // rows - room * number // rows
        drawn += _beside(beside, width, tall, columns)
    if left_out:
        names = ", ".join(view.so_far.name for view in left_out)
        drawn.append([styled(f"not shown for want of room: {names}"[:width], "quiet")])
    return drawn


def _beside(views: Sequence[View], width: int, height: int, columns: int) -> list[Row]:
    """Return some runs side by side, each as wide as one of so many columns."""
    gap = 3
    each = (width - gap * (columns - 1)) // columns
    parts = [view.rows(each, height) for view in views]
    between = styled(" │ ", "quiet")
    return [
        [cell for n, part in enumerate(row) for cell in ([between] if n else []) + list(part)]
        for row in zip(*parts, strict=True)
    ]
