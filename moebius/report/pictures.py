"""The charts of a report: curves of all its runs together, and heat maps of each run."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from moebius.config import Config
from moebius.config.in_phases import all_phases
from moebius.cost.counts import training_flops_per_token
from moebius.cost.units import counted
from moebius.moe.load import dead_share
from moebius.observe.charts import Charts, Line, Marks
from moebius.report.curves import mean_between
from moebius.report.run import Run
from moebius.report.twin import twin_lines

SINGLE = (
    ("tokens_per_second", "Throughput", "tokens per second, without evaluations"),
    ("mfu", "MFU", "model FLOPs per second, of the device's rate of matrix products"),
    ("lr", "Learning rate", ""),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("memory_gb", "Memory", "most in use so far, GB"),
)
BALANCE = (
    ("cv", "Unevenness (CV)", "of each layer's tokens per expert; 0 is even"),
    ("dead_experts", "Dead experts", "in each layer"),
    ("routing_entropy", "Routing entropy", "1: all experts equally likely, 0: certain"),
    ("dropped_share", "Dropped assignments", "refused by full experts"),
    ("unrouted_share", "Tokens without an expert", ""),
)
RULES = {
    "cv": "cv",
    "routing_entropy": "routing_entropy",
    "dropped_share": "dropped_tokens",
    "unrouted_share": "unrouted_tokens",
}
"""The alarm that watches a figure of the layers."""
SHARES = ("mfu", "dropped_share", "unrouted_share")
KINDS = (
    ("alarm", "alarm", 1, "circle"),
    ("action", "alarm with an action", 4, "diamond"),
    ("over", "alarm is over", 2, "emptyCircle"),
    ("skipped", "skipped update", 3, "triangle"),
    ("resumed", "resumed", 0, "pin"),
    ("other", "other", 6, "rect"),
)
"""Kinds of happenings with their name, color and symbol."""


class Pictures:
    """Draws the charts of some runs into `charts`. Each method yields HTML."""

    def __init__(self, runs: Sequence[Run], charts: Charts):
        self.runs, self.charts = runs, charts
        self._model_axes = [
            self._places(run, run.curves.places(run.curves.model_points)) for run in runs
        ]

    def loss(self) -> Iterator[str]:
        """Yield the chart of training and held-out losses, with those of the dense twin."""
        lines: list[Line] = []
        for number, run in enumerate(self.runs):
            lines += self._figure(number, "loss", "training")
            curves = run.curves
            if len(curves.evaluations):
                axes = self._places(run, curves.places(curves.evaluations))
                name = self._name(run, "held out")
                held_out = curves.evaluated("val_loss")
                color = number if len(self.runs) > 1 else 1
                lines.append(Line(name, axes, held_out, color, "points"))
            lines += twin_lines(run, self.charts, number, len(self.runs) > 1)
        if lines:
            yield self.charts.lines(
                "Training and held-out loss", "nats per token", lines, is_wide=True
            )

    def speed(self) -> Iterator[str]:
        """Yield the charts of throughput and of other single figures."""
        for name, title, unit in SINGLE:
            lines = [
                line
                for number in range(len(self.runs))
                for line in self._figure(number, name, title.lower())
            ]
            if any(np.isfinite(line.y).any() for line in lines):
                from_zero = name != "grad_norm"
                is_share = name in SHARES
                yield self.charts.lines(title, unit, lines, is_share=is_share, from_zero=from_zero)

    def balance(self) -> Iterator[str]:
        """Yield the charts of the layers' figures: the worst layer and the mean, or each layer."""
        for name, title, unit in BALANCE:
            lines = [
                line for number in range(len(self.runs)) for line in self._layers(number, name)
            ]
            is_shown = any(np.isfinite(line.y).any() for line in lines)
            if name in SHARES:
                is_shown = any((np.nan_to_num(line.y) > 0).any() for line in lines)
            if is_shown:
                limits = [*self._limit(name, lines)]
                from_zero = name != "routing_entropy"
                yield self.charts.lines(
                    title, unit, lines, limits, from_zero=from_zero, is_share=name in SHARES
                )

    def timeline(self, number: int) -> Iterator[str]:
        """Yield the chart of one run's alarms and actions, a row for each rule."""
        run = self.runs[number]
        shown = run.happenings.shown
        rows = list(dict.fromkeys(happening.rule for happening in shown))
        marks = []
        for kind, name, color, symbol in KINDS:
            if chosen := [happening for happening in shown if happening.kind == kind]:
                axes = self._places(run, run.curves.places_at([each.step for each in chosen]))
                places = [rows.index(happening.rule) for happening in chosen]
                texts = [happening.text for happening in chosen]
                marks.append(Marks(name, axes, places, texts, color, symbol))
        if marks:
            last = max(run.curves.last_step, *(happening.step for happening in shown))
            first = (run.curves.first or {"step": 0})["step"]
            ends = self._with_flops(run, run.curves.places_at([first, last]))
            yield self.charts.marks("When alarms fired and what was done", "", rows, marks, ends)

    def heat(self, number: int) -> Iterator[str]:
        """Yield a heat map for each layer of a run."""
        run = self.runs[number]
        shares = run.shares
        if not len(shares.steps):
            return
        axes = self._places(run, run.curves.places_at(list(shares.steps)))
        for layer, num_experts in enumerate(shares.experts):
            if num_experts:
                is_mtp = run.config is not None and layer >= run.config.model.num_layers
                title = "MTP layer" if is_mtp else f"Layer {layer}"
                yield self.charts.heat(
                    title,
                    counted(num_experts, "expert"),
                    axes,
                    num_experts,
                    dead_share(num_experts),
                    shares.cells(layer),
                )

    def _figure(self, number: int, name: str, title: str) -> list[Line]:
        """Return a run's curve of a figure, empty if the run has no points."""
        run = self.runs[number]
        if not len(run.curves.model_points):
            return []
        mean, low, high = run.curves.figure(name)
        smooth = smoothed(mean) if name in ("loss", "tokens_per_second", "grad_norm") else mean
        is_smoothed = smooth is not mean
        return [
            Line(
                self._name(run, title),
                self._model_axes[number],
                smooth,
                number,
                low=low if is_smoothed else None,
                high=high if is_smoothed else None,
            )
        ]

    def _layers(self, number: int, name: str) -> Iterator[Line]:
        """Yield a run's worst layer and the mean or, for several runs, only the worst layer."""
        run = self.runs[number]
        if run.curves.layer_points is None:
            return
        axes = self._places(run, run.curves.places(run.curves.layer_points))
        of_layers = run.curves.of_layers(name)
        is_known = np.isfinite(of_layers)
        if not is_known.any():
            return
        is_low = name == "routing_entropy"
        filled = np.where(is_known, of_layers, np.inf if is_low else -np.inf)
        worst = filled.min(axis=1) if is_low else filled.max(axis=1)
        if len(self.runs) == 1:
            for layer in range(run.curves.num_layers):
                if is_known[:, layer].any():
                    yield Line(f"layer {layer}", axes, of_layers[:, layer], 0, "faint")
            total, count = np.where(is_known, of_layers, 0).sum(axis=1), is_known.sum(axis=1)
            if name == "dead_experts":
                yield Line("all layers", axes, np.where(count > 0, total, np.nan), 0)
            else:
                yield Line("mean", axes, total / np.where(count > 0, count, np.nan), 0)
        color = number if len(self.runs) > 1 else 1
        yield Line(self._name(run, "worst layer"), axes, worst, color)

    def _limit(self, name: str, lines: Sequence[Line]) -> Iterator[tuple[float, str]]:
        """Yield the threshold of the alarm on a figure, if it is near the values."""
        config = next((run.config for run in self.runs if run.config), None)
        rule = RULES.get(name)
        if rule is None or config is None:
            return
        threshold = config.observe.rules()[rule].threshold
        values = np.concatenate([np.asarray(line.y, float) for line in lines])
        highest = np.nanmax(np.where(np.isfinite(values), values, np.nan))
        if threshold <= 1.2 * highest and (name != "routing_entropy" or highest < 0.2):
            yield threshold, "alarm"

    def _name(self, run: Run, title: str) -> str:
        return f"{run.name}: {title}" if len(self.runs) > 1 else title

    def _places(self, run: Run, places: dict[str, np.ndarray]) -> int:
        return self.charts.places(self._with_flops(run, places))

    def _with_flops(self, run: Run, places: dict[str, np.ndarray]) -> dict[str, list[float]]:
        """Return places with the FLOPs that a run has spent there, if its model is known."""
        columns = {name: column.tolist() for name, column in places.items()}
        if run.config is not None and "tokens" in places:
            columns["flops"] = training_flops(run.config, places["tokens"]).tolist()
        return columns


def training_flops(config: Config, tokens: np.ndarray) -> np.ndarray:
    """Return the FLOPs that training on the first so many tokens of a run takes.

    The phases of a run may have sequences of different lengths.
    """
    borders = [0.0, *(phase.until for phase in config.train.phases[:-1]), math.inf]
    total = np.zeros(len(tokens))
    for plain, begin, end in zip(all_phases(config), borders[:-1], borders[1:], strict=True):
        per_token = training_flops_per_token(plain.model, plain.train.seq_len)
        with np.errstate(over="ignore"):  # damaged numbers of tokens
            total += (np.clip(tokens, begin, end) - begin) * per_token
    return total


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the mean of each value and its neighbors, a hundredth of all points, to look at.

    There are as many neighbors on either side, so that a curve that falls is not delayed. Values
    that are not finite stay gaps.
    """
    at = np.arange(len(values))
    reach = np.minimum(len(values) // 200, np.minimum(at, at[::-1]))
    mean = mean_between(values, at - reach, at + reach + 1)
    return np.where(np.isfinite(values), mean, np.nan)
