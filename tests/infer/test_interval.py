"""Confidence intervals, compared with definitions, tables and repeated experiments."""

import math

import numpy as np
import pytest

from moebius.infer.interval import interval, student_t


def ratio(sums: np.ndarray) -> np.ndarray:
    """Return nats per token, the mean over parts."""
    return (sums[..., 1] / sums[..., 0]).mean(axis=-1)


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.7062), (2, 4.3027), (5, 2.5706), (10, 2.2281), (30, 2.0423), (math.inf, 1.9600)],
)
def test_student_t_is_that_of_the_tables(freedom, value):
    assert student_t(freedom) == pytest.approx(value, abs=3e-4)


def test_equal_documents_give_the_textbook_interval_of_a_mean():
    """With documents of one length, the jackknife is the standard error of their mean."""
    losses = np.array([2.0, 3.0, 3.5, 5.0])
    part = np.stack([np.full(4, 10.0), 10 * losses], axis=1)
    found = interval([part], ratio)
    error = losses.std(ddof=1) / math.sqrt(4)
    assert found == pytest.approx((3.375 - 3.1824 * error, 3.375 + 3.1824 * error), abs=1e-3)


def test_the_variances_of_parts_add_up():
    rng = np.random.default_rng(0)
    parts = [np.stack([np.full(n, 7.0), 7 * rng.normal(size=n)], axis=1) for n in (40, 90)]
    low, high = interval(parts, ratio) or (0, 0)
    errors = [part[:, 1].std(ddof=1) / 7 / math.sqrt(len(part)) for part in parts]
    assert (high - low) / 2 == pytest.approx(1.98 * math.hypot(*errors) / 2, rel=0.01)


def test_what_cannot_be_told():
    one, two = np.array([[5.0, 9.0]]), np.array([[5.0, 9.0], [4.0, 2.0]])
    assert interval([one], ratio) is None and interval([two, one], ratio) is None
    assert interval([two * [1, np.nan]], ratio) is None
    assert interval([np.array([[5.0, 0.0], [4.0, 1.0]])], lambda s: s[..., 0, 0] / 0) is None
    assert interval([np.array([[5.0, 10.0]] * 3)], ratio) == (2, 2)


def documents(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    """Return documents whose lengths are lognormal and whose tokens are alike."""
    length = np.maximum(1, np.round(np.exp(rng.normal(5, spread, count))))
    mean = 3 + 0.5 * rng.normal(size=count)
    return np.stack([length, length * mean + 3 * np.sqrt(length) * rng.normal(size=count)], axis=1)


@pytest.mark.parametrize(
    ("count", "spread"),
    [(5, 1.0), (24, 1.0), (24, 1.5), (200, 1.0)],
)
def test_95_percent_intervals_cover_the_truth_that_often(count, spread):
    """The tokens of a document share half a nat, and a tenth of them are in a few documents.

    Over 600 experiments, the share of intervals that contain the truth has a standard error of
    0.9%. Intervals that take tokens as independent contain it far less often.
    """
    rng = np.random.default_rng(1)
    covered, covered_by_tokens, experiments = 0, 0, 600
    for _ in range(experiments):
        sums = documents(rng, count, spread)
        low, high = interval([sums], ratio) or (0, 0)
        covered += low <= 3 <= high
        naive = 1.96 * math.hypot(3, 0.5) / math.sqrt(sums[:, 0].sum())
        covered_by_tokens += abs(sums[:, 1].sum() / sums[:, 0].sum() - 3) <= naive
    assert 0.915 <= covered / experiments <= 0.985
    assert covered_by_tokens / experiments < 0.85


def test_a_mixture_of_sources_is_covered_as_often():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        parts = [documents(rng, 8, 1.0), documents(rng, 60, 0.5)]
        low, high = interval(parts, lambda s: (s[..., 1] / s[..., 0]) @ [0.3, 0.7]) or (0, 0)
        hits += low <= 3 <= high
    assert 0.915 <= hits / 400 <= 0.985
