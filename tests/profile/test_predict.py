"""What another configuration should take, where the answer is known."""

from dataclasses import replace

import pytest

from moebius.config import Config
from moebius.profile.predict import predicted_seconds
from moebius.profile.report import Profile
from moebius.settings import override, parse_flags
from tests.profile.made_up import TIMES, made_up, small_config


def test_the_configuration_itself_takes_what_was_measured():
    profile = made_up(small_config("--model.base_expansion=2", "--model.use_mtp=true"), waiting=0.1)
    assert predicted_seconds(profile, profile.config) == pytest.approx(profile.measured.seconds)


def test_a_component_that_goes_takes_its_time_with_it():
    profile = made_up(small_config("--model.base_expansion=2"))
    without = override(profile.config, parse_flags(["--model.base_expansion=0"]))
    expected = profile.measured.seconds - profile.measured.of("base_mlp")
    optimizer = next(row for row in profile.rows if row.component == "optimizer")
    base = next(row for row in profile.rows if row.component == "base_mlp")
    shrunk = optimizer.seconds * base.parameters / sum(row.parameters for row in profile.rows)
    assert predicted_seconds(profile, without) == pytest.approx(expected - shrunk, rel=0.02)


def test_half_the_width_halves_the_products():
    profile = made_up(small_config("--model.moe_min_expansion=4", "--model.moe_max_expansion=4"))
    half = override(profile.config, parse_flags(["--model.moe_min_expansion=2", "--model.moe_max_expansion=2"]))
    saved = profile.measured.seconds - predicted_seconds(profile, half)
    assert saved > 0.4 * (profile.measured.of("expert_gemms") + profile.measured.of("activation"))


def test_what_is_known_better_wins():
    profile = made_up(small_config())
    expected = profile.measured.seconds - 0.25 * profile.measured.of("lm_head")
    assert predicted_seconds(profile, profile.config, {"lm_head": 0.75}) == pytest.approx(expected)


def test_a_larger_batch_is_compared_at_equal_tokens_and_waits_no_longer():
    profile = made_up(small_config(), waiting=0.5)
    double = replace(profile.config, train=replace(profile.config.train, batch_size=512))
    found = predicted_seconds(profile, double)
    optimizer, waiting = profile.measured.of("optimizer"), profile.measured.waiting
    assert found < profile.measured.seconds - 0.45 * (optimizer + waiting)
    assert found > profile.measured.seconds - 0.75 * (optimizer + waiting)
    assert TIMES > 1


def test_no_step_is_shorter_than_its_launching():
    profile = made_up(small_config("--model.base_expansion=64"))
    profile = replace(profile, measured=replace(profile.measured, host=0.9 * profile.measured.seconds))
    without = override(profile.config, parse_flags(["--model.base_expansion=0"]))
    assert predicted_seconds(profile, without) == pytest.approx(0.9 * profile.measured.seconds)
    in_parts = override(without, parse_flags(["--train.micro_batch_size=64"]))  # of 256: launched four times
    assert predicted_seconds(profile, in_parts) == pytest.approx(3.6 * profile.measured.seconds)
    more = override(without, parse_flags(["--train.batch_size=512"]))
    assert predicted_seconds(profile, more) == pytest.approx(
        max(0.45 * profile.measured.seconds, rest(profile, more)), rel=0.01
    )


def rest(profile: Profile, config: Config) -> float:
    """What the device alone would take."""
    return predicted_seconds(replace(profile, measured=replace(profile.measured, host=0.0)), config)
