"""Figures of variants, compared: pairs of rounds, pairs of seeds, learning curves at the same place. No torch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from moebius.profile.ablate.variants import Variant

Curve = Sequence[tuple[float, float]]  # (tokens or seconds, loss), by the first
Axis = Literal["tokens", "seconds"]
Figure = Literal["loss", "bits_per_byte"]


@dataclass(frozen=True)
class Point:
    """An evaluation on held-out text, in nats per token and bits per byte."""

    step: int
    loss: float
    bits_per_byte: float


@dataclass
class Outcome:
    """What became of a variant. rounds: seconds a step, one number a round; turns: the same, while it learned, without
    evaluations; curves: one a seed; peak_bytes: of the device or, on a CPU, of the process."""

    variant: Variant
    problem: str = ""
    device: str = ""
    warm_seconds: float = 0.0
    rounds: list[float] = field(default_factory=list)
    peak_bytes: float = 0.0
    turns: list[float] = field(default_factory=list)
    curves: list[list[Point]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return statistics.median(self.rounds)

    @property
    def tokens_per_second(self) -> float:
        return self.variant.tokens / self.seconds

    @property
    def learning_seconds(self) -> float:
        """Of a step that learns. The median over all turns is the clock of the curves: a burst of other work, or a compiler's,
        then counts for no variant, and what routing changes on the way counts for its own."""
        return statistics.median(self.turns)

    def curve(self, seed: int, axis: Axis, figure: Figure = "bits_per_byte") -> list[tuple[float, float]]:
        unit = self.variant.tokens if axis == "tokens" else self.learning_seconds
        return [(point.step * unit, getattr(point, figure)) for point in self.curves[seed]]

    def mean_curve(self, axis: Axis) -> list[tuple[float, float]]:
        """Over the seeds, bits per byte."""
        curves = [self.curve(seed, axis) for seed in range(len(self.curves))]
        return [(points[0][0], statistics.fmean(y for _, y in points)) for points in zip(*curves, strict=True)]

    def at(self, axis: Axis, x: float, figure: Figure = "bits_per_byte") -> list[float]:
        """Of each seed; nothing where x is outside of the evaluations."""
        found = [value_at(self.curve(seed, axis, figure), x) for seed in range(len(self.curves))]
        return [value for value in found if value is not None]


@dataclass(frozen=True)
class Spread:
    """The middle of paired comparisons, and their ends."""

    middle: float
    lowest: float
    highest: float

    def excludes(self, value: float) -> bool:
        """Whether every pair says the same about which is greater."""
        return not self.lowest <= value <= self.highest


def speed(outcome: Outcome, other: Outcome) -> Spread:
    """How many times as many tokens a second, round by round."""
    unit = outcome.variant.tokens / other.variant.tokens
    pairs = zip(outcome.rounds, other.rounds, strict=True)
    ratios = [unit * theirs / ours for ours, theirs in pairs]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours less theirs, seed by seed."""
    pairs = [one - other for one, other in zip(ours, theirs, strict=True)]
    return Spread(statistics.fmean(pairs), min(pairs), max(pairs))


def common_end(outcomes: Sequence[Outcome], axis: Axis) -> float:
    """Tokens or seconds that all of them have learned for."""
    return min(outcome.curve(0, axis)[-1][0] for outcome in outcomes)


def value_at(curve: Curve, x: float) -> float | None:
    """Linear between the points; None outside of them."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[0][1] if len(curve) == 1 and x == curve[0][0] else None


def break_even(ours: Curve, theirs: Curve) -> float | None:
    """Where our loss falls below theirs and stays there up to the last place that both reach: linear between the points, the
    first place that both reach if it always is. None if it is not below at the last."""
    first, last = max(ours[0][0], theirs[0][0]), min(ours[-1][0], theirs[-1][0])
    places = sorted({x for x, _ in (*ours, *theirs) if first <= x <= last})
    gaps = [_known(ours, x) - _known(theirs, x) for x in places]
    if not gaps or gaps[-1] >= 0:
        return None
    behind = max((number for number, gap in enumerate(gaps) if gap >= 0), default=-1)
    if behind < 0:
        return places[0]
    before, after = gaps[behind], gaps[behind + 1]
    return places[behind] + (places[behind + 1] - places[behind]) * before / (before - after)


def _known(curve: Curve, x: float) -> float:
    value = value_at(curve, x)
    assert value is not None
    return value
