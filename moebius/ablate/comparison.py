"""Compare the figures of variants round by round, seed by seed and along curves, without torch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from moebius.ablate.variants import Variant

Curve = Sequence[tuple[float, float]]
"""Points of a learning curve: pairs of a place (tokens or seconds) and the loss there, sorted."""
Axis = Literal["tokens", "seconds"]
Figure = Literal["loss", "bits_per_byte"]


@dataclass(frozen=True)
class Point:
    """An evaluation on held-out text."""

    step: int
    loss: float
    """Nats per token."""
    bits_per_byte: float
    """Bits per byte of raw text."""


@dataclass
class Outcome:
    """The measurements of one variant."""

    variant: Variant
    problem: str = ""
    """Why the variant failed. Empty if it did not."""
    device: str = ""
    """The device in words."""
    warm_seconds: float = 0.0
    """Seconds per step right after the warm-up."""
    rounds: list[float] = field(default_factory=list)
    """Seconds per step in each round."""
    crowding: str = ""
    """Who else used the processor during a measurement, in words. Empty if nobody did."""
    peak_bytes: float = 0.0
    """Largest number of bytes in use, on the GPU or, on a CPU, by the process."""
    turns: list[float] = field(default_factory=list)
    """Seconds per training step in each turn of the learning phase, not counting evaluations."""
    curves: list[list[Point]] = field(default_factory=list)
    """The evaluations of each seed."""

    @property
    def seconds(self) -> float:
        """Seconds per step: the median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def tokens_per_second(self) -> float:
        """Training speed, measured over the rounds."""
        return self.variant.tokens / self.seconds

    @property
    def learning_seconds(self) -> float:
        """Seconds per step in the learning phase: the median of the turns.

        Curves over time use this instead of a clock. A burst of other work on the machine, or of
        compilation, then affects no variant, while a slowdown that comes from a variant's own
        routing does count.
        """
        return statistics.median(self.turns)

    def curve(
        self, seed: int, axis: Axis, figure: Figure = "bits_per_byte"
    ) -> list[tuple[float, float]]:
        """Return one seed's curve; the first seed has number 0."""
        unit = self.variant.tokens if axis == "tokens" else self.learning_seconds
        return [(point.step * unit, getattr(point, figure)) for point in self.curves[seed]]

    def mean_curve(self, axis: Axis) -> list[tuple[float, float]]:
        """Return the mean of the seeds' curves, in bits per byte."""
        curves = [self.curve(seed, axis) for seed in range(len(self.curves))]
        return [
            (points[0][0], statistics.fmean(value for _, value in points))
            for points in zip(*curves, strict=True)
        ]

    def at(self, axis: Axis, place: float, figure: Figure = "bits_per_byte") -> list[float]:
        """Return each seed's value at a place, interpolated between evaluations.

        Seeds without evaluations on both sides of the place are left out.
        """
        seeds = range(len(self.curves))
        values = [value_at(self.curve(seed, axis, figure), place) for seed in seeds]
        return [value for value in values if value is not None]


@dataclass(frozen=True)
class Spread:
    """The result of several paired comparisons."""

    middle: float
    lowest: float
    highest: float

    def excludes(self, value: float) -> bool:
        """Return whether the results of all pairs lie on the same side of a value."""
        return not self.lowest <= value <= self.highest


def quoted(outcome: Outcome) -> str:
    """Return a variant's name as it appears in sentences."""
    return f"`{outcome.variant.name}`"


def speed(outcome: Outcome, reference: Outcome) -> Spread:
    """Return a variant's tokens/s divided by the reference's, compared round by round."""
    unit = outcome.variant.tokens / reference.variant.tokens
    pairs = zip(outcome.rounds, reference.rounds, strict=True)
    ratios = [unit * reference_seconds / seconds for seconds, reference_seconds in pairs]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def difference(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return values minus reference values, seed by seed. The middle is the mean."""
    gaps = [value - other for value, other in zip(values, reference, strict=True)]
    return Spread(statistics.fmean(gaps), min(gaps), max(gaps))


def common_end(outcomes: Sequence[Outcome], axis: Axis) -> float:
    """Return the last place (tokens or seconds) that all of these variants have reached."""
    return min(outcome.curve(0, axis)[-1][0] for outcome in outcomes)


def value_at(curve: Curve, place: float) -> float | None:
    """Return a curve's value at a place, interpolated linearly, or None outside of its range."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= place <= x1:
            return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
    return curve[0][1] if len(curve) == 1 and place == curve[0][0] else None


def break_even(curve: Curve, reference: Curve) -> float | None:
    """Return the place after which a curve stays below the reference.

    Only places that both curves cover count; between points, both are linear. If the curve is
    below the reference everywhere, the result is the first place. If it is not below the reference
    at the last place, the result is None.
    """
    first = max(curve[0][0], reference[0][0])
    last = min(curve[-1][0], reference[-1][0])
    places = sorted({place for place, _ in (*curve, *reference) if first <= place <= last})
    gaps = [_known(curve, place) - _known(reference, place) for place in places]
    if not gaps or gaps[-1] >= 0:
        return None
    behind = max((number for number, gap in enumerate(gaps) if gap >= 0), default=-1)
    if behind < 0:
        return places[0]
    before, after = gaps[behind], gaps[behind + 1]
    return places[behind] + (places[behind + 1] - places[behind]) * before / (before - after)


def _known(curve: Curve, place: float) -> float:
    value = value_at(curve, place)
    assert value is not None
    return value
