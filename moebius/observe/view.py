"""The view of a run: rows of styled text that fill a terminal or a part of it.

From the top down: what the run is called and how it is doing, its progress, its figures, the
recent curve of its loss, a row for each layer with experts, and the latest events.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

from moebius.config.printable import printable_line
from moebius.cost.units import short
from moebius.observe.glance import Balance, Health, balances, health
from moebius.observe.layer_rows import layer_rows
from moebius.observe.loss_plot import plot
from moebius.observe.paint import Row, fitted, styled
from moebius.observe.so_far import Happening, SoFar

HEAD = 3
"""Rows of the name, the progress and the figures."""
LABEL = 8
"""Columns of the values beside the curve."""
NARROWEST_COLUMN = 62
"""Columns of the terminal below which no second layer has room beside the first one."""
WITH_BITS = 76
"""Columns from which the held-out loss is also shown in bits per byte."""
TALLEST_PLOT = 12
SHARE = 0.003
"""Share of a processor's time that drawing may take. A picture takes milliseconds."""


class Layout(NamedTuple):
    """How many rows each part below the head has."""

    plot: int
    layers: int
    """Rows of layers, with the line above them."""
    happenings: int
    """Rows of events, with the line above them."""


def layout(height: int, num_layers: int) -> Layout:
    """Return how the rows below the head are divided.

    The layers get what they need, but the curve and the events keep a few rows. What is left
    over makes the curve taller, and then shows more events.
    """
    rest = max(0, height - HEAD)
    least_plot = 4 if rest >= 15 else 3 if rest >= 10 else 0
    least_events = 3 if rest >= 10 else 2 if rest >= 6 else 0
    layers = min(1 + num_layers, rest - least_plot - least_events) if num_layers else 0
    layers = layers if layers > 1 else 0
    spare = rest - layers - least_events
    tall = 0 if not least_plot else max(least_plot, min(TALLEST_PLOT, spare - 2))
    return Layout(tall, layers, rest - layers - tall)


class View:
    """Draws one run.

    What is below the progress is drawn again once it has changed, but not so often that it takes
    more than `share` of a processor's time. The size of the terminal is followed at once.
    """

    def __init__(self, so_far: SoFar, share: float = SHARE):
        self.so_far, self._share = so_far, share
        self._body: list[Row] = []
        self._drawn: tuple[int, int, int] | None = None
        """The version, the columns and the rows that the body was drawn for."""
        self._due = 0.0
        self._health = Health("calm", "")

    def rows(self, width: int, height: int) -> list[Row]:
        """Return exactly `height` rows of exactly `width` columns."""
        now = self.so_far.version, width, height
        is_resized = self._drawn is None or self._drawn[1:] != now[1:]
        if is_resized or (now != self._drawn and time.monotonic() >= self._due):
            start = time.thread_time()
            self._draw(width, height)
            self._drawn = now
            self._due = time.monotonic() + (time.thread_time() - start) / self._share
        head = (_title(self.so_far, self._health, width), _progress(self.so_far, width))
        return [*(fitted(row, width) for row in head), *self._body][:height]

    def _draw(self, width: int, height: int) -> None:
        """Draw what is below the progress, and judge the run."""
        layers, num_steps = balances(self.so_far)
        self._health = health(self.so_far, layers)
        room = max(0, height - 2)
        body = list(_body(self.so_far, layers, num_steps, width, height))[:room]
        self._body = body + [[styled(" " * width)] for _ in range(room - len(body))]


def _title(so_far: SoFar, judged: Health, width: int) -> Row:
    """Return the run's name, what it is doing, how it is, and where to read what to do."""
    state, words = f"  {so_far.state}: ", judged.words
    room = max(8, width - len(state) - len(words))
    name = printable_line(so_far.name)
    hint = f"; moebius report {name} says what to do" if judged.tone in ("warn", "bad") else ""
    hint = hint if len(name) + len(hint) <= room else ""
    name = name if len(name) <= room else f"{name[: room - 1]}…"
    parts = (name, "name"), (state, ""), (words, judged.tone), (hint, "quiet")
    return [styled(text, style) for text, style in parts]


def _times(so_far: SoFar) -> str:
    parts: list[str] = []
    if so_far.seconds is not None:
        parts.append(clock(so_far.seconds))
    if so_far.seconds_left is not None:
        parts.append(f"{clock(so_far.seconds_left)} left")
    return "".join(f"  {part}" for part in parts)


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, or as days and hours if it is long."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minute:02d}:{second:02d}"


def _progress(so_far: SoFar, width: int) -> Row:
    """Return the step, a bar, and the time that has passed and is left."""
    total = max(so_far.total_steps, 1)
    share = min(1.0, so_far.step / total)
    words = f"step {so_far.step:,}/{so_far.total_steps:,} "
    percent = f" {math.floor(1000 * share) / 10:5.1f}%{_times(so_far)}"
    room = max(0, width - len(words) - len(percent))
    done = int(room * share)
    return [
        styled(words),
        styled("━" * done, "bar"),
        styled("─" * (room - done), "quiet"),
        styled(percent),
    ]


def _body(
    so_far: SoFar, layers: dict[int, Balance], num_steps: int, width: int, height: int
) -> Iterator[Row]:
    """Yield everything below the progress."""
    yield fitted(_figures(so_far, width), width)
    columns = _columns(width, height, len(layers))
    parts = layout(height, -(-len(layers) // columns))
    yield from (fitted(row, width) for row in _curve(so_far, width, parts.plot))
    if parts.layers:
        limit = so_far.limits.cv.threshold
        yield from layer_rows(layers, num_steps, limit, width, columns, parts.layers)
    yield from (fitted(row, width) for row in _happenings(so_far, width, parts.happenings))


def _figures(so_far: SoFar, width: int) -> Row:
    """Return the figures of the latest step, the most important ones first, as far as they fit."""
    latest, held_out = so_far.latest, so_far.held_out
    if latest is None:
        which = "next" if so_far.points else "first"
        return [styled(f"waiting for the {which} logged step", "quiet")]
    bad = "" if math.isfinite(latest.loss) else "bad"
    pairs = [("loss ", f"{latest.loss:.3f}", bad or "figure")]
    if held_out:
        has_room = held_out.bpb is not None and width >= WITH_BITS
        bits = f" ({held_out.bpb:.3f} bpb)" if has_room else ""
        pairs.append(("held-out ", f"{held_out.loss:.3f}{bits}", "figure"))
    pairs.append(("", f"{short(latest.tokens_per_second)} tok/s", "figure"))
    pairs.append(("MFU ", f"{latest.mfu:.1%}", "figure"))
    pairs.append(("", f"{latest.memory_gb:.1f} GB", "figure"))
    for name in ("dropped", "unrouted"):
        layers = [layer for _, layer in latest.routed_layers]
        if worst := max((getattr(layer, f"{name}_share") for layer in layers), default=0):
            pairs.append((f"{name} ", f"{worst:.0%}", "warn"))
    if held_out:
        pairs.append(("evaluated at ", f"{held_out.step:,}", ""))
    pairs += [("lr ", f"{latest.lr:.3g}", ""), ("gradient ", f"{latest.grad_norm:.3g}", "")]
    row: Row = []
    used = 0
    for words, value, style in pairs:
        size = len(words) + len(value) + (2 if row else 0)
        if used + size <= width:
            row += [styled(("  " if row else "") + words, "quiet"), styled(value, style)]
            used += size
    return row


def _curve(so_far: SoFar, width: int, height: int) -> Iterator[Row]:
    """Yield the recent curve of the loss, with the held-out losses as marks."""
    if not height:
        return
    columns = max(4, width - LABEL - 1)
    points = list(so_far.points)[-2 * columns :]
    marks = [(point.step, point.val_loss) for point in points if point.val_loss is not None]
    losses = [point.loss for point in points]
    steps = [point.step for point in points]
    rows, low, high = plot(steps, losses, marks, columns, height - 1)
    for number, row in enumerate(rows):
        label = ""
        if math.isfinite(low):
            label = _value(high) if number == 0 else _value(low) if number == len(rows) - 1 else ""
        edge = "┤" if label else "│"
        yield [styled(f"{label:>{LABEL}}{edge}", "quiet"), *_with_marks(row)]
    words = ""
    if points:
        words = f" loss, steps {points[0].step:,} to {points[-1].step:,} "
        words += "(◆ held-out) " if marks else ""
    words = words[:columns]
    yield [styled(f"{'':>{LABEL}}└{words}{'─' * (columns - len(words))}", "quiet")]


def _value(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e3 else f"{value:.1e}"


def _with_marks(row: str) -> Row:
    """Return a row of a curve, in which marks have a color of their own."""
    parts: Row = []
    for number, piece in enumerate(row.split("◆")):
        if number:
            parts.append(styled("◆", "held_out"))
        parts.append(styled(piece, "curve"))
    return parts


def _columns(width: int, height: int, num_layers: int) -> int:
    """Return how many layers are beside each other: more than one if they do not fit otherwise."""
    if not num_layers:
        return 1
    room = max(1, layout(height, num_layers).layers - 1)
    return max(1, min(width // NARROWEST_COLUMN, -(-num_layers // room)))


def _happenings(so_far: SoFar, width: int, height: int) -> Iterator[Row]:
    """Yield the latest events, the latest one last."""
    if not height:
        return
    words = "─ latest events " if so_far.happenings else "─ no events so far "
    yield [styled(words + "─" * max(0, width - len(words)), "quiet")]
    latest: list[Happening] = list(so_far.happenings)[-(height - 1) :] if height > 1 else []
    for happening in latest:
        text = printable_line(happening.text)
        text = text if len(text) <= width else f"{text[: width - 1]}…"
        yield [styled(text, happening.kind)]
