"""Tests of the rules about what a model computes."""

from types import SimpleNamespace

import torch

from moebius.profile.finding import changed
from moebius.profile.findings import findings
from tests.profile.made_up import PLAIN, findings_of, made_up, small_config, stepped, titles


def test_a_base_mlp_beside_one_expert_is_waste(same):
    profile = made_up(small_config(*PLAIN, "--model.base_expansion=8", "--model.use_mtp=true"))
    reported = findings_of(profile)
    assert titles(reported) == ["an always-on base MLP", "multi-token prediction, a choice"]
    assert reported[0].flags == ("--model.base_expansion=0",)
    assert changed(profile.config, reported[0]).model.base_width == 0
    assert reported[0].seconds < profile.measured.seconds - 0.9 * profile.measured.of("base_mlp")


def test_a_base_mlp_beside_two_experts_is_a_design(same):
    config = small_config(*PLAIN, "--model.base_expansion=8", "--model.router_top_k=2")
    assert not findings_of(made_up(config))


def test_a_sigmoid_router_that_gives_more_experts_than_one(same):
    config = small_config(
        *PLAIN,
        "--model.base_expansion=1",
        "--model.router_type=sigmoid",
        "--model.router_threshold=0.5",
    )
    reported = findings_of(made_up(config))
    assert "more compute than one expert per token" in titles(reported)
    assert all("--model.router_type=softmax_topk" in finding.flags for finding in reported)


def test_a_small_base_mlp_beside_every_expert_is_not_what_costs(same):
    """This is the founding document's configuration for stability."""
    config = small_config(
        *PLAIN,
        "--model.base_expansion=1",
        "--model.router_type=sigmoid",
        "--model.router_threshold=0.1",
    )
    profile = made_up(config, experts_per_token=4 * [4.0])
    assert titles(findings_of(profile)) == ["more compute than one expert per token"]


def test_a_router_without_a_gradient_is_named(same):
    profile = made_up(small_config(*PLAIN, "--model.base_expansion=8"))
    result = SimpleNamespace(router_grad_norm_M=torch.tensor([1.0, 0.0]), stats=[])
    first = findings_of(profile, result=result)[0]
    assert first.title == "a router without a gradient" and "layers 1:" in first.evidence


def test_tokens_that_a_full_expert_drops(same):
    profile = made_up(small_config(*PLAIN, "--model.router_type=switch"))
    steps = stepped(profile)
    layer = steps.result.stats[0]
    layer.dropped = 0.25 * layer.tokens
    reported = findings(profile, steps)
    assert reported[0].title == "tokens that no expert takes" and "25%" in reported[0].evidence
    layer.dropped *= 0.01
    assert not findings(profile, steps)
