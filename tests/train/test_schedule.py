"""The learning rate, compared with values worked out by hand."""

import pytest

from moebius.config import TrainConfig
from moebius.train.schedule import learning_rate


def rates(**settings) -> list[float]:
    """Return the rates of all steps of a run whose peak rate is 1."""
    config = TrainConfig(lr=1.0, **settings)
    return [learning_rate(step, config) for step in range(config.steps)]


def test_warmup_is_linear_and_its_first_step_already_moves():
    assert rates(steps=100, warmup_steps=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_cosine_by_hand():
    # There are two steps of warm-up, then 0, 1/4, 1/2, 3/4 and 1 of half a cosine from 1 to 0.2.
    half = 0.5**0.5
    expected = [0.5, 1, 1, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half), 0.2]
    assert rates(steps=7, warmup_steps=2, min_lr_fraction=0.2) == pytest.approx(expected)


def test_wsd_by_hand():
    # There are two steps of warm-up and a stable part, and the last 4 of 10 steps fall to 0.2.
    expected = [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert rates(
        steps=10, warmup_steps=2, schedule="wsd", decay_fraction=0.4, min_lr_fraction=0.2
    ) == pytest.approx(expected)


def test_wsd_without_a_decay_stays_and_without_a_stable_part_falls_from_the_start():
    stable = rates(steps=5, warmup_steps=0, schedule="wsd", decay_fraction=0.0)
    assert stable == pytest.approx([1] * 5)
    falling = rates(
        steps=5, warmup_steps=0, schedule="wsd", decay_fraction=1.0, min_lr_fraction=0.0
    )
    assert falling == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])


def test_wsd_decay_of_one_step_reaches_the_lowest_rate():
    assert rates(
        steps=10, warmup_steps=0, schedule="wsd", decay_fraction=0.1, min_lr_fraction=0.1
    ) == pytest.approx([1] * 9 + [0.1])


def test_wsd_decay_that_would_begin_in_the_warmup_begins_after_it():
    assert rates(
        steps=6, warmup_steps=4, schedule="wsd", decay_fraction=1.0, min_lr_fraction=0.0
    ) == pytest.approx([0.25, 0.5, 0.75, 1, 0.5, 0])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_warmup_of_zero_one_and_more_than_the_run(schedule):
    assert rates(steps=10, warmup_steps=0, schedule=schedule)[0] == pytest.approx(1)
    assert rates(steps=10, warmup_steps=1, schedule=schedule)[0] == pytest.approx(1)
    assert rates(steps=3, warmup_steps=3, schedule=schedule) == pytest.approx([1 / 3, 2 / 3, 1])
    interrupted = rates(steps=3, warmup_steps=6, schedule=schedule)
    assert interrupted == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert rates(steps=1, warmup_steps=0, schedule=schedule) == pytest.approx([1])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("warmup_steps", [0, 3, 30])
def test_a_step_beyond_the_end_keeps_the_last_rate(schedule, warmup_steps):
    config = TrainConfig(steps=20, warmup_steps=warmup_steps, schedule=schedule)
    assert learning_rate(1000, config) == learning_rate(20, config) == learning_rate(19, config)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_rates_rise_to_the_peak_then_fall_to_the_lowest(schedule):
    all_rates = rates(steps=50, warmup_steps=10, schedule=schedule, min_lr_fraction=0.1)
    rising, falling = all_rates[:10], all_rates[10:]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    assert max(all_rates) == 1 and all_rates[-1] == pytest.approx(0.1)
