"""Tests of thinning out a series while it is read."""

import numpy as np
import pytest

from moebius.report.thinned import Thinned


def thinned(values: list[float], most: int) -> Thinned:
    """Return a thinned series of one figure."""
    series = Thinned(1, most)
    for value in values:
        series.add(np.array([value]))
    return series


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_a_short_series_stays_as_it_is(count):
    values = [float(n * n) for n in range(count)]
    series = thinned(values, 4)
    assert series.mean[:, 0].tolist() == series.low[:, 0].tolist() == values
    assert series.high[:, 0].tolist() == values


@pytest.mark.parametrize("count", [9, 16, 17, 100, 1000])
def test_a_long_series_keeps_its_mean_and_its_extremes(count):
    values = np.random.default_rng(0).standard_normal(count).tolist()
    series = thinned(values, 4)
    assert 4 <= len(series) <= 8
    assert series.low.min() == min(values) and series.high.max() == max(values)
    size = 1
    while -(-count // size) > 8:
        size *= 2
    rows = [values[start : start + size] for start in range(0, count, size)]
    assert series.mean[:, 0] == pytest.approx([np.mean(row) for row in rows])
    assert series.low[:, 0].tolist() == [min(row) for row in rows]
    assert series.high[:, 0].tolist() == [max(row) for row in rows]


def test_values_that_are_not_finite_are_missing():
    series = thinned([1.0, np.nan, np.inf, 3.0, np.nan, np.nan, 5.0, 7.0, 9.0], 4)
    assert series.mean[:, 0] == pytest.approx([1, 3, np.nan, 6, 9], nan_ok=True)
    assert series.high[:, 0] == pytest.approx([1, 3, np.nan, 7, 9], nan_ok=True)


def test_figures_are_independent():
    series = Thinned(2, 1)
    for row in ([1.0, np.nan], [3.0, 4.0], [5.0, 6.0]):
        series.add(np.array(row))
    assert series.mean.tolist() == [[2.0, 4.0], [5.0, 6.0]]
