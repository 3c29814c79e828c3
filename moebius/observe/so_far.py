"""What a view shows of a run: its latest figures, recent losses and events, in bounded memory."""

import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from moebius.config import ObserveConfig
from moebius.moe.load import is_enough
from moebius.observe.line_file import Line
from moebius.observe.metrics import StepMetrics

MOST_POINTS = 600
"""Number of logged losses that are kept: as many as the widest terminal has room for."""
MOST_HAPPENINGS = 100
MOST_SUMMED = 32
"""Number of logged steps whose tokens per expert are added up at most."""


class Point(NamedTuple):
    """A logged step of the loss curve."""

    step: int
    loss: float
    val_loss: float | None = None
    """Held-out loss, if the step was evaluated."""


class HeldOut(NamedTuple):
    """The latest evaluation."""

    step: int
    loss: float
    bpb: float | None
    """Bits per byte. None if the tokenizer loses text."""


class Happening(NamedTuple):
    """An event in the words of the log."""

    text: str
    kind: str = ""
    """`alarm`, `over`, `action`, `skipped`, `checkpoint`, or something else."""


class Loads:
    """The tokens per expert of the latest logged steps.

    A step with few tokens says little about a layer of many experts, so that as many steps as
    alarms need are added up.
    """

    def __init__(self) -> None:
        self._added: deque[tuple[int, Sequence[Sequence[int]]]] = deque(maxlen=MOST_SUMMED)
        self._arrays: deque[tuple[int, list[np.ndarray]]] = deque(maxlen=MOST_SUMMED)

    def add(self, step: int, counts: Sequence[Sequence[int]]) -> None:
        """Add the counts of a step. They are only looked at when somebody asks for the sum."""
        self._added.append((step, counts))

    def rewind(self, step: int) -> None:
        """Forget later steps."""
        for known in (self._added, self._arrays):
            while known and known[-1][0] > step:
                known.pop()

    def summed(self) -> tuple[dict[int, np.ndarray], int]:
        """Return the counts of each layer with experts, and the number of steps they are from."""
        with suppress(IndexError):  # another thread may forget some meanwhile
            while self._added:
                step, counts = self._added.popleft()
                self._arrays.append((step, [np.array(layer, np.int32) for layer in counts]))
        total: dict[int, np.ndarray] = {}
        number = 0
        for _, counts in list(self._arrays)[::-1]:
            layers = {n: layer for n, layer in enumerate(counts) if len(layer)}
            if number and {n: len(layer) for n, layer in layers.items()} != {
                n: len(layer) for n, layer in total.items()
            }:
                break
            total = {n: layer + total.get(n, 0) for n, layer in layers.items()}
            number += 1
            if all(is_enough(layer.tolist()) for layer in total.values()):
                break
        return total, number


@dataclass
class SoFar:
    """A run up to now, as a view shows it."""

    name: str = ""
    total_steps: int = 0
    limits: ObserveConfig = field(default_factory=ObserveConfig)
    """The run's alarms, whose thresholds say what is harmless."""
    state: str = "training"
    """What the run is doing, in a word or two."""
    step: int = 0
    """Number of finished steps, logged or not."""
    seconds: float | None = None
    """Time that the training has taken. None if it is not known yet."""
    seconds_left: float | None = None
    """Time that the training will still take. None if it is not known yet."""
    latest: StepMetrics | None = None
    """The latest logged step."""
    held_out: HeldOut | None = None
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=MOST_POINTS))
    loads: Loads = field(default_factory=Loads)
    happenings: deque[Happening] = field(default_factory=lambda: deque(maxlen=MOST_HAPPENINGS))
    version: int = 0
    """A number that is another one whenever something but the step and the times has changed."""

    def add(self, metrics: StepMetrics) -> None:
        """Add a logged step."""
        self.add_point(metrics.step, metrics.loss, metrics.val_loss, metrics.val_bpb)
        if any(True for _ in metrics.routed_layers):
            self.loads.add(metrics.step, [layer.tokens_per_expert for layer in metrics.layers])
        self.show(metrics)

    def show(self, metrics: StepMetrics) -> None:
        """Make a step, of which the loss and the loads are known, the latest one."""
        self.latest = metrics
        self.version += 1

    def add_point(
        self, step: int, loss: float, val_loss: float | None = None, val_bpb: float | None = None
    ) -> None:
        """Add a step to the loss curve alone."""
        self.step = max(self.step, step)
        self.points.append(Point(step, loss, val_loss))
        if val_loss is not None:
            self.held_out = HeldOut(step, val_loss, val_bpb)
        self.version += 1

    def happen(self, text: str, kind: str = "") -> None:
        """Add an event."""
        self.happenings.append(Happening(text, kind))
        self.version += 1

    def forget(self) -> None:
        """Forget everything but the events."""
        self.step, self.latest, self.held_out = 0, None, None
        self.points.clear()
        self.loads = Loads()
        self.version += 1

    def rewind(self, step: int) -> None:
        """Forget the figures of later steps, which the run trains again."""
        self.step = step
        while self.points and self.points[-1].step > step:
            self.points.pop()
        self.loads.rewind(step)
        if self.held_out and self.held_out.step > step:
            evaluated = [point for point in self.points if point.val_loss is not None]
            last = evaluated[-1] if evaluated else None
            loss = None if last is None else last.val_loss
            self.held_out = None if last is None or loss is None else HeldOut(last[0], loss, None)
        if self.latest and self.latest.step > step:
            self.latest = None
        self.version += 1


def add_line(so_far: SoFar, line: Line) -> None:
    """Add a line of metrics.jsonl to the loss curve. A null is a number that is not finite."""
    loss, val_loss = line["loss"], line.get("val_loss")
    if "val_loss" in line and val_loss is None:
        val_loss = math.nan
    loss = math.nan if loss is None else loss
    so_far.add_point(line["step"], loss, val_loss, line.get("val_bpb"))
