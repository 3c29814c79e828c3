"""Tests of predictions for which the right answer is known."""

from dataclasses import replace

import pytest

from moebius.config import Config
from moebius.config.files import override
from moebius.config.flags import parse_flags
from moebius.profile.predict import predicted_seconds
from moebius.profile.result import Profile
from tests.profile.made_up import made_up, small_config


def with_flags(profile: Profile, *flags: str) -> Config:
    """Return the profiled configuration with some flags on top."""
    return override(profile.config, parse_flags(list(flags)))


def test_the_configuration_itself_takes_what_was_measured():
    config = small_config("--model.base_expansion=2", "--model.use_mtp=true")
    profile = made_up(config, waiting=0.1)
    assert predicted_seconds(profile, profile.config) == pytest.approx(profile.measured.seconds)


def test_a_component_that_disappears_takes_its_time_with_it():
    profile = made_up(small_config("--model.base_expansion=2"))
    without = with_flags(profile, "--model.base_expansion=0")
    rows = {row.component: row for row in profile.rows}
    parameters = sum(row.parameters for row in profile.rows)
    of_optimizer = rows["optimizer"].seconds * rows["base_mlp"].parameters / parameters
    expected = profile.measured.seconds - rows["base_mlp"].seconds - of_optimizer
    assert predicted_seconds(profile, without) == pytest.approx(expected, rel=0.02)


def test_half_the_width_halves_the_products():
    profile = made_up(small_config("--model.moe_min_expansion=4", "--model.moe_max_expansion=4"))
    half = with_flags(profile, "--model.moe_min_expansion=2", "--model.moe_max_expansion=2")
    saved = profile.measured.seconds - predicted_seconds(profile, half)
    assert saved > 0.4 * (profile.measured.of("expert_gemms") + profile.measured.of("activation"))


def test_a_measured_factor_replaces_the_ratio_of_the_floors():
    profile = made_up(small_config())
    expected = profile.measured.seconds - 0.25 * profile.measured.of("lm_head")
    assert predicted_seconds(profile, profile.config, {"lm_head": 0.75}) == pytest.approx(expected)


def test_a_larger_batch_is_compared_at_equal_tokens_and_waits_no_longer():
    profile = made_up(small_config(), waiting=0.5)
    double = replace(profile.config, train=replace(profile.config.train, batch_size=512))
    saved = profile.measured.seconds - predicted_seconds(profile, double)
    per_step = profile.measured.of("optimizer") + profile.measured.waiting
    assert 0.45 * per_step < saved < 0.75 * per_step


def test_rows_that_are_moved_for_every_choice_cost_as_many():
    """With a sigmoid router, a token may have every expert, so rows are moved for all of them."""
    config = small_config("--model.router_type=sigmoid", "--model.base_expansion=1")
    profile = made_up(config, experts_per_token=[1.0] * 4)
    fewer = with_flags(profile, "--model.num_experts=2")
    static = replace(profile, has_row_for_every_choice=True)
    assert predicted_seconds(static, fewer) < predicted_seconds(profile, fewer)


def test_no_step_is_shorter_than_its_launching():
    profile = made_up(small_config("--model.base_expansion=64"))
    step = profile.measured.seconds
    profile = replace(profile, measured=replace(profile.measured, host=0.9 * step))
    without = with_flags(profile, "--model.base_expansion=0")
    assert predicted_seconds(profile, without) == pytest.approx(0.9 * step)
    in_four_passes = override(without, parse_flags(["--train.micro_batch_size=64"]))
    assert predicted_seconds(profile, in_four_passes) == pytest.approx(3.6 * step)
    larger = override(without, parse_flags(["--train.batch_size=512"]))
    without_host = replace(profile, measured=replace(profile.measured, host=0.0))
    expected = max(0.45 * step, predicted_seconds(without_host, larger))
    assert predicted_seconds(profile, larger) == pytest.approx(expected, rel=0.01)
