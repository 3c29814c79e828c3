"""Curves of braille characters."""

import math

import pytest

from moebius.observe.loss_plot import MARK, plot


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right():
    rows, low, high = plot(range(10), range(10, 0, -1), [], 20, 4)
    assert (low, high) == (1, 10) and [len(row) for row in rows] == [20] * 4
    starts = [len(row) - len(row.lstrip()) for row in rows]
    assert starts == sorted(starts) and starts[0] == 0
    assert rows[0].strip() and rows[3].rstrip() == rows[3]


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30])
def test_an_even_curve_and_a_single_point(value):
    for number in (1, 2, 50):
        rows, low, high = plot(range(number), [value] * number, [], 10, 3)
        assert low == high == value
        assert [bool(row.strip()) for row in rows] == [False, True, False]


def test_what_is_not_finite_is_left_out():
    rows, low, high = plot(range(5), [1, math.nan, math.inf, -math.inf, 2], [(2, math.nan)], 8, 2)
    assert (low, high) == (1, 2) and all(row.strip() for row in rows)
    rows, low, _ = plot(range(2), [math.nan, math.nan], [], 8, 2)
    assert math.isnan(low) and rows == [" " * 8] * 2
    assert plot([], [], [], 8, 2)[0] == [" " * 8] * 2


def test_marks_are_at_their_places_and_inside():
    rows, low, high = plot(range(11), [5.0] * 11, [(0, 9.0), (10, 1.0), (99, 3.0)], 11, 5)
    assert (low, high) == (1, 9)
    assert rows[0][0] == MARK and rows[4][10] == MARK and "".join(rows).count(MARK) == 2


def test_a_jump_leaves_no_gap():
    rows, _, _ = plot(range(40), [0.0] * 20 + [1.0] * 20, [], 20, 6)
    assert all(row.strip() for row in rows)
