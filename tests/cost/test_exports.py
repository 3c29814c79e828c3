"""Which stock architecture holds a configuration; every refusal has a row with its reason."""

from dataclasses import replace
from typing import Any

import pytest

from moebius.config import ModelConfig, ObserveConfig
from moebius.config.observe import Rule
from moebius.config.presets import PRESETS, preset
from moebius.cost.exports import export_line, holder

MODEL = ModelConfig(
    vocab_size=100,
    dim=64,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    num_experts=8,
    router_top_k=2,
)
BASE: dict[str, Any] = {"base_expansion": 1.0}
DENSE: dict[str, Any] = {"num_experts": 0, "base_expansion": 2.0, "router_top_k": 1}
SIGMOID: dict[str, Any] = {"router_score": "sigmoid"}
THRESHOLD: dict[str, Any] = {"router_type": "sigmoid", "router_threshold": 0.0, **BASE}
SWITCH: dict[str, Any] = {"router_type": "switch", "router_top_k": 1}

HELD = [
    ({}, False, "Qwen2MoeForCausalLM"),
    ({"renormalize_gates": False}, False, "Qwen2MoeForCausalLM"),
    (BASE, False, "Qwen2MoeForCausalLM"),
    ({"activation": "relu2"}, False, "Qwen2MoeForCausalLM"),
    ({"num_experts": (0, 8, 0, 8), **BASE}, False, "Qwen2MoeForCausalLM"),
    ({"num_experts": (2, 4, 4, 8), "router_top_k": 1}, False, "Qwen2MoeForCausalLM"),
    ({**SWITCH, "eval_capacity_factor": 8.0}, False, "Qwen2MoeForCausalLM"),
    ({**SWITCH, "capacity_factor": 8.0}, False, "Qwen2MoeForCausalLM"),
    ({}, True, "Ernie4_5_MoeForCausalLM"),
    ({"qk_norm": True}, False, "Qwen3MoeForCausalLM"),
    ({"qk_norm": True, **BASE}, False, "Qwen3NextForCausalLM"),
    (SIGMOID, False, "Glm4MoeForCausalLM"),
    ({**SIGMOID, "qk_norm": True, **BASE}, True, "Glm4MoeForCausalLM"),
    ({**SIGMOID, "num_experts": (3, 4, 5, 8)}, True, "Glm4MoeForCausalLM"),
    (THRESHOLD, False, "Glm4MoeForCausalLM"),
    (DENSE, False, "LlamaForCausalLM"),
    ({**DENSE, "num_heads": 6, "head_dim": 16}, False, "MistralForCausalLM"),
    ({**DENSE, "qk_norm": True}, False, "Qwen3ForCausalLM"),
    ({**DENSE, "activation": "gelu"}, False, "ArceeForCausalLM"),
    ({**DENSE, "activation": "relu2", "qk_norm": True}, False, "ApertusForCausalLM"),
]
REFUSED = [
    ({"activation": "gelu"}, False, "experts with activation gelu"),
    ({"residual_mix": "learned", **BASE}, False, "residual_mix learned"),
    ({**THRESHOLD, "router_threshold": 0.1}, False, "router_threshold 0.1"),
    (THRESHOLD, True, "acts as a threshold"),
    (SWITCH, False, "switch drops tokens in evaluation"),
    ({**SWITCH, "capacity_factor": 8.0, "eval_capacity_factor": 7.9}, False, "drops tokens"),
    ({"qk_norm": True}, True, "choice bias and qk_norm"),
    ({"num_experts": (2, 4, 4, 8)}, False, "top-2 of 2 to 8 experts"),
    ({"num_experts": (3, 4, 4, 8), "router_top_k": 1}, False, "3 and 8 experts"),
    (
        {**DENSE, "activation": "gelu", "num_heads": 6, "head_dim": 16},
        False,
        "dim 64 is no multiple of num_heads 6",
    ),
]


@pytest.mark.parametrize(("changes", "has_bias", "name"), HELD, ids=str)
def test_the_architecture_that_holds_a_model(changes, has_bias, name):
    found = holder(replace(MODEL, **changes), has_bias)
    assert found.architecture is not None and found.architecture.name == name
    assert not found.reason


@pytest.mark.parametrize(("changes", "has_bias", "reason"), REFUSED, ids=str)
def test_what_no_architecture_holds_is_refused_with_its_reason(changes, has_bias, reason):
    found = holder(replace(MODEL, **changes), has_bias)
    assert found.architecture is None
    assert reason in found.reason


def test_what_only_matters_in_training_decides_nothing():
    trained = replace(MODEL, expert_dropout=0.1, router_jitter=0.01, aux_loss_coeff=1.0)
    assert holder(trained) == holder(MODEL)
    dense = replace(MODEL, **DENSE, residual_mix="learned", router_type="switch")
    assert holder(dense).architecture is not None  # there is neither a mix nor a router


def test_a_line_says_what_a_run_can_be_exported_to():
    quiet = ObserveConfig()
    assert export_line(MODEL, quiet) == "hf: Qwen2MoeForCausalLM"
    with_mtp = replace(MODEL, use_mtp=True)
    assert export_line(with_mtp, quiet) == "hf: Qwen2MoeForCausalLM, with --drop mtp"
    assert "Ernie" in export_line(replace(MODEL, router_bias_rate=1e-3), quiet)
    line = export_line(replace(MODEL, activation="gelu"), quiet)
    assert line.startswith("to no stock architecture: experts with activation gelu")


def test_the_line_says_what_an_alarm_would_change():
    nudging = ObserveConfig(dead_expert=Rule(threshold=0.01, action="nudge_bias"))
    assert export_line(MODEL, nudging).endswith(
        "Qwen2MoeForCausalLM, to Ernie4_5_MoeForCausalLM once an alarm has nudged a bias"
    )
    normed = replace(MODEL, qk_norm=True)
    assert "to nothing once an alarm" in export_line(normed, nudging)
    sigmoid = replace(MODEL, router_score="sigmoid")
    assert export_line(sigmoid, nudging) == "hf: Glm4MoeForCausalLM"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_line(name):
    config = preset(name)
    assert export_line(config.model, config.observe)
