"""The share of its layer's load that each expert takes, thinned out for a heat map."""

import base64
from itertools import chain
from typing import Any

import numpy as np

from moebius.observe.line_file import Line
from moebius.observe.metrics import COUNTS
from moebius.report.thinned import Thinned

MOST_COLUMNS, FEWEST_COLUMNS = 100, 12
"""Bounds of the number of columns of a long run's heat map, which has fewer than twice as many."""
SCALE = 65_535
"""Shares are written as integers up to this one, in two bytes."""


class Shares:
    """The tokens per expert of a run, step by step."""

    def __init__(self, most_cells: int):
        """`most_cells` is about the number of cells that the heat maps of a long run have."""
        self._most_cells = most_cells
        self._counts: Thinned | None = None
        self.experts: list[int] = []
        """Number of experts of each layer, once there are counts."""
        self.num_damaged = 0
        """Number of steps whose counts are not those of this model."""

    def add_line(self, line: Line) -> None:
        """Add the counts of a line of metrics.jsonl, if it has any."""
        if COUNTS in line:
            self.add(line["step"], line[COUNTS])

    def add(self, step: int, counts: Any) -> None:
        """Add the counts of a step: a list of integers for each layer."""
        try:
            experts = [len(layer) for layer in counts]
            row = np.array([step, *chain.from_iterable(counts)], float)
            is_sound = bool((row >= 0).all()) and row.ndim == 1
        except (TypeError, ValueError, OverflowError):
            self.num_damaged += 1
            return
        if self._counts is None and sum(experts):
            self.experts = experts
            most = self._most_cells // sum(experts) // 2
            most = min(MOST_COLUMNS, max(FEWEST_COLUMNS, most))
            self._counts = Thinned(1 + sum(experts), most)
        if experts != self.experts or not is_sound:
            self.num_damaged += bool(sum(experts) or self.experts)
        elif self._counts is not None:
            self._counts.add(row)

    @property
    def steps(self) -> np.ndarray:
        """The last step of each column."""
        return np.zeros(0) if self._counts is None else self._counts.high[:, 0]

    def of_layer(self, layer: int) -> np.ndarray:
        """Return the shares of a layer's experts, (columns, experts).

        A column is of several steps together, in which each token counts the same. The shares of
        a layer without tokens are 0.
        """
        assert self._counts is not None
        start = 1 + sum(self.experts[:layer])
        load_SE = self._counts.mean[:, start : start + self.experts[layer]]
        total_S = load_SE.sum(axis=1, keepdims=True)
        return load_SE / np.where(total_S > 0, total_S, 1)

    def cells(self, layer: int) -> str:
        """Return the shares of a layer as `Charts.heat` takes them."""
        integers = np.rint(self.of_layer(layer) * SCALE).astype("<u2")
        return base64.b64encode(integers.tobytes()).decode()
