"""A run's output on the terminal: a line per logged step and, on a terminal, the live view."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from rich.console import Console, Group
from rich.text import Text

from moebius.config import ObserveConfig
from moebius.config.printable import printable
from moebius.config.width import folded
from moebius.cost.units import short
from moebius.data.output import Output
from moebius.observe.growing_file import GrowingFile
from moebius.observe.line_file import METRICS
from moebius.observe.live import Live, can_draw
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Event, Sample
from moebius.observe.so_far import SoFar, add_line
from moebius.observe.view import View
from moebius.parallel.process import Process

PACE = 20
"""Number of logged steps from which the time that is left is estimated."""


class Terminal:
    """A sink that prints. A process that does not write prints nothing.

    On a terminal the lines scroll away above the live view, and stay when it ends. It never
    raises an error because its output cannot be written: see `when_lost`.
    """

    def __init__(
        self,
        total_steps: int,
        progress: bool = True,
        process: Process | None = None,
        limits: ObserveConfig | None = None,
    ):
        """progress: whether there is a live view. limits: the run's alarms, for their limits."""
        # sys.stdout is None if it was closed before Python started.
        self._output = Output(sys.stdout) if sys.stdout else None
        self.console = Console(file=cast(Any, self._output), highlight=False)
        self.console.quiet = process is not None and not process.writes
        self.is_live = (
            progress
            and self._output is not None
            and not self.console.quiet
            and can_draw(self.console, self._output)
        )
        self.so_far = SoFar(total_steps=total_steps, limits=limits or ObserveConfig())
        self._live: Live | None = None
        self._started = time.monotonic()
        self._pace: deque[tuple[float, int]] = deque(maxlen=PACE)

    def when_lost(self, report: Callable[[Exception], None]) -> None:
        """Call `report` once the terminal or pipe is closed, now if that has already happened."""
        if self._output is not None:
            self._output.when_lost(report)

    def open(self, run: Path, step: int) -> None:
        """Show the live view as after `step` steps, with the losses before them."""
        self.step(step)
        self._started = time.monotonic()
        self._pace.append((self._started, step))
        if not self.is_live or self._output is None:
            return
        self.so_far.name = run.absolute().name
        for line in GrowingFile(run / METRICS).read().lines if step else ():
            add_line(self.so_far, line)
        view = View(self.so_far)

        def draw(width: int, height: int) -> list[Any]:
            self._tell_time()
            return view.rows(width, height)

        self._live = Live(draw, lambda: self.so_far.version, self.console, self._output)
        self._live.start()

    def write(self, metrics: StepMetrics) -> None:
        """Print a logged step as a line."""
        self._pace.append((time.monotonic(), metrics.step))
        self.so_far.add(metrics)
        self._print(f"step {metrics.step}/{self.so_far.total_steps}  {describe(metrics)}")

    def event(self, event: Event) -> None:
        """Print an event as a line."""
        self.say(str(event))

    def sample(self, sample: Sample) -> None:
        """Print nothing: the last text is printed when the run ends."""

    def rewind(self, step: int) -> None:
        """Go back to a step."""
        self._pace.clear()
        self.so_far.rewind(step)

    def close(self) -> None:
        """End the live view, and leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def step(self, step: int) -> None:
        """Take note of the number of finished steps."""
        self.so_far.step = step

    def say(self, *lines: str) -> None:
        """Print lines about events, which the live view shows, too."""
        for line in lines:
            self.so_far.happen(line, kind_of(line))
            self._print(line)

    def note(self, line: str, kind: str) -> None:
        """Show an event in the live view alone."""
        self.so_far.happen(line, kind)

    def _print(self, line: str) -> None:
        """Print a line. The terminal wraps it, so that it can be copied."""
        if self._live is not None:
            self._live.say(line)
            return
        # A Text that is printed without a Group loses its own settings.
        text = Text(printable(line), no_wrap=True, overflow="ignore")
        self.console.print(Group(text), crop=False)

    def _tell_time(self) -> None:
        """Take note of the time that has passed, and of that which is left at the latest pace."""
        so_far, now = self.so_far, time.monotonic()
        so_far.seconds = now - self._started
        pace = list(self._pace)
        if len(pace) < 2 or pace[-1][1] <= pace[0][1]:
            so_far.seconds_left = None
            return
        (began, first), (ended, last) = pace[0], pace[-1]
        per_step = (ended - began) / (last - first)
        at_last = per_step * max(0, so_far.total_steps - last)
        so_far.seconds_left = max(0.0, at_last - (now - ended))


def kind_of(line: str) -> str:
    """Return which kind of event a line of the log is about, "" if it is none of them."""
    _, _, words = line.partition(": ")
    if words.startswith("alarm: "):
        return "action" if "; " in words else "alarm"
    return "over" if words.startswith("over: ") else "skipped" if "skipped" in words else ""


def describe(metrics: StepMetrics) -> str:
    """Return a step in one line: loss, speed, load of the experts, and validation loss.

    The load is the worst layer's CV, the number of dead experts in all layers, and the worst
    layer's share of dropped and unrouted tokens, if there are any.
    """
    speed = metrics.tokens_per_second
    parts = [f"loss {metrics.loss:.3f}", f"{short(speed, 2 if speed >= 1e6 else 1)} tok/s"]
    layers = dict(metrics.routed_layers)
    if layers:
        worst = max(layers, key=lambda number: layers[number].cv)
        parts.append(f"cv {layers[worst].cv:.2f} (layer {worst})")
        parts.append(f"dead {sum(layer.dead_experts for layer in layers.values())}")
        if dropped := max(layer.dropped_share for layer in layers.values()):
            parts.append(f"dropped {dropped:.0%}")
        if unrouted := max(layer.unrouted_share for layer in layers.values()):
            parts.append(f"unrouted {unrouted:.0%}")
    if metrics.val_loss is not None:
        bpb = "no" if metrics.val_bpb is None else f"{metrics.val_bpb:.3f}"
        parts.append(f"val {metrics.val_loss:.3f} ({bpb} bpb)")
    return "  ".join(parts)


def table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return rows of a name and a text as lines with two aligned columns.

    On a terminal long texts are folded within their column.
    """
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return list(folded((f"{name:<{width}}  {value}" for name, value in rows), width + 2))
