"""Curves and pairs, on figures made up so that the answer is known."""

import pytest

from moebius.config import Config, TrainConfig
from moebius.profile.ablate.comparison import Outcome, Point, break_even, common_end, difference, speed, value_at
from moebius.profile.ablate.variants import Variant

DENSE = [(10.0, 5.0), (20.0, 4.0), (30.0, 3.5), (40.0, 3.0)]


def moved(*gaps: float) -> list[tuple[float, float]]:
    return [(x, y + gap) for (x, y), gap in zip(DENSE, gaps, strict=True)]


@pytest.mark.parametrize(
    ("gaps", "at"),
    [
        ((-0.1, -0.1, -0.1, -0.1), 10.0),  # from the start
        ((0.1, 0.1, 0.1, 0.1), None),  # never
        ((0.0, 0.0, 0.0, 0.0), None),  # equal
        ((-0.1, -0.1, -0.1, 0.0), None),  # equal in the end
        ((0.1, -0.1, -0.1, -0.1), 15.0),  # once
        ((0.1, -0.1, 0.3, -0.1), 37.5),  # twice: the second, it must stay ahead
        ((-0.1, 0.2, -0.2, -0.1), 25.0),  # ahead, behind, ahead
        ((0.1, -0.1, -0.1, 0.1), None),  # ahead in between only
        ((0.1, 0.0, -0.1, -0.1), 20.0),  # from where they are equal
    ],
)
def test_break_even(gaps, at):
    assert break_even(moved(*gaps), DENSE) == (None if at is None else pytest.approx(at))


def test_break_even_of_curves_with_places_of_their_own():
    """A straight line from 5 at 10 to 3 at 40, against steeper ones that end sooner or begin later."""
    line = [(10.0, 5.0), (40.0, 3.0)]
    assert break_even([(0.0, 7.0), (30.0, 3.0)], line) == pytest.approx(20.0)  # 7 - 2x/15 = 5 - (x - 10) / 15
    assert break_even([(25.0, 3.9), (60.0, 1.0)], line) == 25.0
    assert break_even([(50.0, 1.0), (60.0, 1.0)], line) is None  # nowhere together


def test_a_value_is_linear_between_points_and_nowhere_else():
    assert value_at(DENSE, 10) == 5 and value_at(DENSE, 40) == 3
    assert value_at(DENSE, 22) == pytest.approx(3.9)
    assert value_at(DENSE, 9.9) is None and value_at(DENSE, 41) is None
    assert value_at([(3.0, 2.0)], 3) == 2 and value_at([(3.0, 2.0)], 4) is None


def outcome(rounds: list[float], batch_size: int = 2, **more) -> Outcome:
    config = Config(train=TrainConfig(batch_size=batch_size, seq_len=100))
    return Outcome(Variant("some", (), config), rounds=rounds, **more)


def test_speed_is_paired_round_by_round():
    """A burst of other work in the second round slows both, and leaves the ratio alone."""
    ratio = speed(outcome([1.0, 10.0, 1.25]), outcome([2.0, 20.0, 2.0]))
    assert (ratio.middle, ratio.lowest, ratio.highest) == (2.0, 1.6, 2.0)


def test_speed_counts_tokens_not_steps():
    ratio = speed(outcome([3.0], batch_size=6), outcome([2.0], batch_size=2))
    assert ratio.middle == 2.0


def test_differences_are_paired_seed_by_seed():
    found = difference([2.0, 3.0], [1.5, 2.9])
    assert (found.middle, found.lowest, found.highest) == pytest.approx((0.3, 0.1, 0.5))
    assert difference([2.0, 3.0], [1.5, 2.9]).excludes(0)
    assert not difference([2.0, 3.0], [1.5, 3.1]).excludes(0)
    assert not difference([2.0], [2.0]).excludes(0)


def test_a_curve_lies_on_the_clock_of_the_median_turn():
    points = [[Point(4, 2.0, 1.0), Point(8, 1.5, 0.8)], [Point(4, 2.2, 1.2), Point(8, 1.7, 1.0)]]
    found = outcome([1.0], turns=[0.5, 9.0, 0.5], curves=points)
    assert found.curve(0, "seconds") == [(2.0, 1.0), (4.0, 0.8)]
    assert found.curve(1, "tokens", "loss") == [(800, 2.2), (1600, 1.7)]
    assert found.mean_curve("tokens") == [(800, pytest.approx(1.1)), (1600, pytest.approx(0.9))]
    assert found.at("seconds", 3.0) == pytest.approx([0.9, 1.1])
    assert found.at("seconds", 5.0) == []
    slower = outcome([1.0], turns=[0.7], curves=points[:1])
    assert common_end([slower, found], "seconds") == 4.0
