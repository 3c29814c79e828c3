"""The curves of a run: its metrics.jsonl, read line by line and thinned out."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moebius.observe.line_file import Line
from moebius.report.shares import Shares
from moebius.report.thinned import Thinned

AXES = ("step", "tokens", "seconds")
FIGURES = (
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "mfu",
    "memory_gb",
)
EVALUATED = ("val_loss", "val_bpb")
OF_LAYERS = ("cv", "dead_experts", "routing_entropy", "dropped_share", "unrouted_share")
MOST_POINTS = 500
"""Least number of points of a long run's curve, which has fewer than twice as many: more than a
screen has room for."""
MOST_EVALUATIONS = 300
RECENT = 10
"""Number of logged steps at the end that are kept whole."""


@dataclass
class Curves:
    """What metrics.jsonl says about a run."""

    model_points: Thinned = field(
        default_factory=lambda: Thinned(len(AXES) + len(FIGURES), MOST_POINTS)
    )
    evaluations: Thinned = field(
        default_factory=lambda: Thinned(len(AXES) + len(EVALUATED), MOST_EVALUATIONS)
    )
    layer_points: Thinned | None = None
    """Figures of the layers. None if no line has any."""
    num_layers: int = 0
    first: Line | None = None
    recent: deque[Line] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The last logged steps."""
    num_lines: int = 0
    num_damaged: int = 0
    _seconds: float = 0.0
    _tokens: float = 0.0

    @property
    def last(self) -> Line:
        """The last logged step. There must be one."""
        return self.recent[-1]

    @property
    def last_step(self) -> int:
        """Number of the last logged step; 0 without any."""
        return self.recent[-1]["step"] if self.recent else 0

    @property
    def seconds(self) -> float:
        """Seconds of training, without evaluations and checkpoints."""
        return self._seconds

    def places(self, thinned: Thinned) -> dict[str, np.ndarray]:
        """Return the places of points along each axis: the last of the steps that each is of."""
        return {name: thinned.high[:, column] for column, name in enumerate(AXES)}

    def places_at(self, steps: Sequence[float]) -> dict[str, np.ndarray]:
        """Return the places of some steps along each axis, interpolated between logged steps."""
        known = self.places(self.model_points)
        at = np.asarray(steps, float)
        if not len(self.model_points):
            return {"step": at}
        return {"step": at} | {
            name: np.interp(at, known["step"], known[name]) for name in AXES[1:]
        }

    def figure(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the mean, the lowest and the highest value of a figure at each point."""
        column = len(AXES) + FIGURES.index(name)
        points = self.model_points
        return points.mean[:, column], points.low[:, column], points.high[:, column]

    def evaluated(self, name: str) -> np.ndarray:
        """Return a figure of the evaluations at each point."""
        return self.evaluations.mean[:, len(AXES) + EVALUATED.index(name)]

    def of_layers(self, name: str) -> np.ndarray:
        """Return a figure of each layer at each point, (points, layers), NaN where it has none."""
        assert self.layer_points is not None
        start = len(AXES) + OF_LAYERS.index(name) * self.num_layers
        return self.layer_points.mean[:, start : start + self.num_layers]


def read_curves(lines: Iterable[Line | None], shares: Shares, most_values: int) -> Curves:
    """Return the curves of the lines of a metrics.jsonl, in which None is a damaged line.

    shares gets the tokens per expert of each line that has them. most_values: about how many
    figures of layers to keep at least, for all steps and layers of a long run together.
    """
    curves = Curves()
    for line in lines:
        if line is None or line["step"] <= curves.last_step or "loss" not in line:
            curves.num_damaged += 1
        else:
            _add(curves, line, most_values)
            shares.add_line(line)
    return curves


def number(value: Any) -> float:
    """Return a value of a JSON file as a number, NaN if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def column(value: Any) -> np.ndarray:
    """Return a list of a JSON file as numbers, empty if it is no list of numbers and nulls."""
    try:
        numbers = np.array(value if isinstance(value, list) else [], float)
    except (TypeError, ValueError, OverflowError):
        return np.zeros(0)
    return numbers if numbers.ndim == 1 else np.zeros(0)


def mean_between(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the mean of values[start:end] for each pair of bounds; NaN where none is finite."""
    is_known = np.isfinite(values)
    total = np.concatenate([[0], np.cumsum(np.where(is_known, values, 0))])
    number = np.concatenate([[0], np.cumsum(is_known)])
    count = number[end] - number[start]
    return np.where(count > 0, (total[end] - total[start]) / np.maximum(count, 1), np.nan)


def _add(curves: Curves, line: Line, most_values: int) -> None:
    """Add a line to all points."""
    tokens, speed = number(line.get("tokens")), number(line.get("tokens_per_second"))
    if speed > 0 and tokens > curves._tokens:
        curves._seconds += (tokens - curves._tokens) / speed
    if math.isfinite(tokens):
        curves._tokens = tokens
    places = [float(line["step"]), curves._tokens, curves._seconds]
    figures = [number(line.get(name)) for name in FIGURES]
    curves.model_points.add(np.array([*places, *figures]))
    if "val_loss" in line:
        evaluated = [number(line.get(name)) for name in EVALUATED]
        curves.evaluations.add(np.array([*places, *evaluated]))
    _add_layers(curves, line, places, most_values)
    curves.first = curves.first or line
    curves.recent.append(line)
    curves.num_lines += 1


def _add_layers(curves: Curves, line: Line, places: list[float], most_values: int) -> None:
    """Add a line's figures of layers. Those of a dense layer, without entropy, are missing."""
    columns = {name: column(line.get(name)) for name in OF_LAYERS}
    if curves.layer_points is None:
        curves.num_layers = len(columns["cv"])
        if not curves.num_layers:
            return
        size = curves.num_layers * len(OF_LAYERS)
        most = min(MOST_POINTS, max(50, most_values // size))
        curves.layer_points = Thinned(len(AXES) + size, most)
    missing = np.full(curves.num_layers, math.nan)
    rows = np.array(
        [values if len(values) == curves.num_layers else missing for values in columns.values()]
    )
    rows[:, np.isnan(rows[OF_LAYERS.index("routing_entropy")])] = np.nan
    curves.layer_points.add(np.array([*places, *rows.ravel()]))
