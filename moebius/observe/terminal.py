"""A run's output on the terminal: a progress bar, or a line per logged step without one."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from moebius.config.printable import printable
from moebius.config.width import folded
from moebius.cost.units import short
from moebius.data.output import Output
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Event
from moebius.parallel.process import Process

BAR_WIDTH = 12  # characters; less where the terminal is narrow


class Terminal:
    """A sink that prints. A process that does not write prints nothing.

    It never raises an error because its output cannot be written: see `when_lost`.
    """

    def __init__(self, total_steps: int, progress: bool = True, process: Process | None = None):
        # sys.stdout is None if it was closed before Python started.
        self._output = Output(sys.stdout) if sys.stdout else None
        self.console = Console(file=cast(Any, self._output), highlight=False)
        self.console.quiet = process is not None and not process.writes
        self.is_live = progress and self.console.is_terminal and not self.console.quiet
        self.progress = Progress(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}", table_column=one_row()),
            BarColumn(bar_width=BAR_WIDTH),
            _Metrics(table_column=one_row(ratio=1)),  # takes the space that the others leave
            TimeRemainingColumn(compact=True, table_column=one_row()),
            console=self.console,
            expand=True,
            disable=not self.is_live,
        )
        self.total_steps = total_steps
        self.task = self.progress.add_task("train", total=total_steps, metrics=None)

    def when_lost(self, report: Callable[[Exception], None]) -> None:
        """Call `report` once the terminal or pipe is closed, now if that has already happened."""
        if self._output is not None:
            self._output.when_lost(report)

    def open(self, run: Path, step: int) -> None:
        """Show the bar as after `step` steps."""
        self.step(step)
        self.progress.start()

    def write(self, metrics: StepMetrics) -> None:
        """Show a logged step next to the bar or, without a bar, as a line."""
        self.progress.update(self.task, metrics=metrics)
        if not self.is_live:
            self.say(f"step {metrics.step}/{self.total_steps}  {describe(metrics)}")

    def event(self, event: Event) -> None:
        """Print an event as a line above the bar."""
        self.say(str(event))

    def rewind(self, step: int) -> None:
        """Move the bar back."""
        self.step(step)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()

    def step(self, step: int) -> None:
        """Move the bar to the number of finished steps."""
        self.progress.update(self.task, completed=step)

    def say(self, *lines: str) -> None:
        """Print lines above the bar. The terminal wraps them, so that they can be copied."""
        for line in lines:
            # Settings of `print` would also apply to the bar below, and a Text that is printed
            # without a Group loses its own.
            text = Text(printable(line), no_wrap=True, overflow="ignore")
            self.console.print(Group(text), crop=False)


def one_row(ratio: int | None = None) -> Column:
    """Return the layout of a part of a progress bar that is cut off where there is no space.

    Otherwise it would wrap, and the bar would leave a copy of itself behind at every update.
    """
    return Column(no_wrap=True, overflow="ellipsis", ratio=ratio)


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


class _Metrics(ProgressColumn):
    """The latest logged step, next to the bar."""

    def render(self, task: Task) -> Text:
        metrics = task.fields["metrics"]
        return Text(describe(metrics) if metrics else "starting")
