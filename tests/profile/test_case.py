"""Tests of the questions that rules ask about a profiled step."""

import pytest

from moebius.hardware.backends import Backends
from moebius.profile.case import Case
from tests.profile.made_up import made_up, small_config, stepped


def test_experts_per_token_are_the_mean_of_the_blocks_that_have_any():
    config = small_config("--model.num_experts=[2,0,4,0]", "--model.base_expansion=1")
    profile = made_up(config, experts_per_token=[1.5, 0.0, 0.5, 0.0])
    case = Case(profile, stepped(profile))
    assert case.routed == [1.5, 0.5] and case.experts_per_token == 1.0


def test_without_recomputation_a_component_runs_forward_once():
    profile = made_up(small_config())
    case = Case(profile, stepped(profile))
    forward = profile.measured.of("lm_head", "forward")
    expected = 1 - forward / profile.measured.of("lm_head")
    assert case.without_recomputation("lm_head") == pytest.approx(expected)
    assert case.without_recomputation("nothing") == 1.0


def test_fused_experts_need_less_memory():
    profile = made_up(small_config())
    grouped, triton = (
        Case(profile, stepped(profile, backends=Backends(name, "flex"))).memory(profile.config)
        for name in ("grouped", "triton")
    )
    assert triton < grouped
