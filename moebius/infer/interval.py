"""Confidence intervals of ratios of sums over documents, such as nats per token.

The tokens of a document are alike, so documents are what varies independently, and the interval
comes from leaving out one document at a time (the jackknife over clusters). Documents differ in
length by orders of magnitude: with few of them, a normal approximation covers the true value too
rarely. The jackknife weighs long documents as heavily as they deserve (MacKinnon, Nielsen and
Webb 2023, J. Econometrics 232), and the degrees of freedom of Student's t are the number of
documents that matter (Carter, Schnepel and Steigerwald 2017, Rev. Econ. Stat. 99), minus 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
METHOD = "jackknife over documents, Student's t with the effective number of documents"
ALMOST_NORMAL = 10_000
"""Degrees of freedom above which Student's t is taken at this number of them."""
GRID = 20_000
"""Number of steps of the numerical integral."""

Figure = Callable[[np.ndarray], np.ndarray]
"""Function from the sums of each part (..., parts, sums) to a figure (...)."""


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


def interval(parts: Sequence[np.ndarray], figure: Figure) -> Interval | None:
    """Return the confidence interval of a figure of independent parts, such as sources.

    parts: the sums of each document of a part, (documents, sums). The first of the sums is the
    document's number of tokens, which says how much it matters.
    figure: a smooth function of each part's totals.

    Returns None if a part has one document only, which says nothing about how documents vary, or
    if the figure is not finite.
    """
    if any(len(part) < 2 for part in parts):
        return None
    totals = np.stack([part.sum(axis=0) for part in parts])
    variances, freedoms = [], []
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(figure(totals))
        for number, part in enumerate(parts):
            without = np.repeat(totals[None], len(part), axis=0)
            without[:, number] -= part
            values = figure(without)
            spread = ((values - values.mean()) ** 2).sum()
            variances.append(float(spread) * (len(part) - 1) / len(part))
            tokens = part[:, 0]
            freedoms.append(max(1.0, float(tokens.sum() ** 2 / (tokens**2).sum()) - 1))
    variance = sum(variances)
    if not math.isfinite(value + variance):
        return None
    # The degrees of freedom of a sum of variances, after Satterthwaite.
    squares = sum(one**2 / df for one, df in zip(variances, freedoms, strict=True))
    half = student_t(variance**2 / squares) * math.sqrt(variance) if squares else 0.0
    return Interval(value - half, value + half)


def student_t(freedom: float) -> float:
    """Return how many standard errors a `CONFIDENCE` interval extends to either side.

    freedom: the degrees of freedom, at least 1; not necessarily a whole number.
    """
    freedom = min(freedom, ALMOST_NORMAL)
    # With t = sqrt(freedom) * tan(angle), the density is cos(angle) ** (freedom - 1).
    angles = np.linspace(0, math.pi / 2, GRID + 1)
    density = np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1)
    covered = np.concatenate([[0.0], np.cumsum(density)]) / density.sum()
    return math.sqrt(freedom) * math.tan(float(np.interp(CONFIDENCE, covered, angles)))
