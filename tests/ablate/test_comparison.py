"""Tests of curves and paired comparisons, on figures for which the answers are known."""

import pytest

from moebius.ablate.comparison import (
    Outcome,
    Point,
    break_even,
    common_end,
    difference,
    speed,
    value_at,
)
from moebius.ablate.variants import Variant
from moebius.config import Config, TrainConfig

DENSE = [(10.0, 5.0), (20.0, 4.0), (30.0, 3.5), (40.0, 3.0)]


def moved(*gaps: float) -> list[tuple[float, float]]:
    """Return the curve DENSE with each of its four losses shifted by one of the gaps."""
    return [(x, y + gap) for (x, y), gap in zip(DENSE, gaps, strict=True)]


@pytest.mark.parametrize(
    ("gaps", "place"),
    [
        ((-0.1, -0.1, -0.1, -0.1), 10.0),  # ahead from the start
        ((0.1, 0.1, 0.1, 0.1), None),  # never ahead
        ((0.0, 0.0, 0.0, 0.0), None),  # equal
        ((-0.1, -0.1, -0.1, 0.0), None),  # equal at the end
        ((0.1, -0.1, -0.1, -0.1), 15.0),  # overtakes once
        ((0.1, -0.1, 0.3, -0.1), 37.5),  # overtakes twice: only the second time it stays ahead
        ((-0.1, 0.2, -0.2, -0.1), 25.0),  # ahead, behind, ahead
        ((0.1, -0.1, -0.1, 0.1), None),  # ahead in between only
        ((0.1, 0.0, -0.1, -0.1), 20.0),  # ahead from a point at which both are equal
    ],
)
def test_break_even(gaps, place):
    assert break_even(moved(*gaps), DENSE) == (None if place is None else pytest.approx(place))


def test_break_even_of_curves_that_were_evaluated_at_different_places():
    """The reference is a straight line from a loss of 5 at place 10 to a loss of 3 at place 40."""
    line = [(10.0, 5.0), (40.0, 3.0)]
    # 7 - 2x/15 = 5 - (x - 10)/15
    assert break_even([(0.0, 7.0), (30.0, 3.0)], line) == pytest.approx(20.0)
    assert break_even([(25.0, 3.9), (60.0, 1.0)], line) == 25.0
    nowhere_in_common = [(50.0, 1.0), (60.0, 1.0)]
    assert break_even(nowhere_in_common, line) is None


def test_a_value_is_linear_between_points_and_unknown_elsewhere():
    assert value_at(DENSE, 10) == 5 and value_at(DENSE, 40) == 3
    assert value_at(DENSE, 22) == pytest.approx(3.9)
    assert value_at(DENSE, 9.9) is None and value_at(DENSE, 41) is None
    assert value_at([(3.0, 2.0)], 3) == 2 and value_at([(3.0, 2.0)], 4) is None


def outcome(rounds: list[float], batch_size: int = 2, **more) -> Outcome:
    """Return the outcome of a variant with `batch_size` sequences of 100 tokens per step."""
    config = Config(train=TrainConfig(batch_size=batch_size, seq_len=100))
    return Outcome(Variant("some", (), config), rounds=rounds, **more)


def test_speed_is_compared_round_by_round():
    """A burst of other work in the second round slows down both, and does not change the ratio."""
    ratio = speed(outcome([1.0, 10.0, 1.25]), outcome([2.0, 20.0, 2.0]))
    assert (ratio.middle, ratio.lowest, ratio.highest) == (2.0, 1.6, 2.0)


def test_speed_counts_tokens_and_not_steps():
    ratio = speed(outcome([3.0], batch_size=6), outcome([2.0], batch_size=2))
    assert ratio.middle == 2.0


def test_differences_are_taken_seed_by_seed():
    gap = difference([2.0, 3.0], [1.5, 2.9])
    assert (gap.middle, gap.lowest, gap.highest) == pytest.approx((0.3, 0.1, 0.5))


def test_a_spread_excludes_a_value_if_all_pairs_agree():
    assert difference([2.0, 3.0], [1.5, 2.9]).excludes(0)
    assert not difference([2.0, 3.0], [1.5, 3.1]).excludes(0)
    assert not difference([2.0], [2.0]).excludes(0)


def test_a_curve_lies_on_the_clock_of_the_median_turn():
    points = [[Point(4, 2.0, 1.0), Point(8, 1.5, 0.8)], [Point(4, 2.2, 1.2), Point(8, 1.7, 1.0)]]
    learned = outcome([1.0], turns=[0.5, 9.0, 0.5], curves=points)
    assert learned.curve(0, "seconds") == [(2.0, 1.0), (4.0, 0.8)]
    assert learned.curve(1, "tokens", "loss") == [(800, 2.2), (1600, 1.7)]
    assert learned.mean_curve("tokens") == [(800, pytest.approx(1.1)), (1600, pytest.approx(0.9))]
    assert learned.at("seconds", 3.0) == pytest.approx([0.9, 1.1])
    assert learned.at("seconds", 5.0) == []
    slower = outcome([1.0], turns=[0.7], curves=points[:1])
    assert common_end([slower, learned], "seconds") == 4.0
