"""Which values the settings of the model refuse, and the shapes that follow from them."""

from dataclasses import replace
from typing import Any

import pytest

from moebius.config import ModelConfig, hidden_width
from moebius.errors import ConfigError
from tests.config.founding import MAXIMUM_SPEED, STABILITY
from tests.config.refusals import Refusal, assert_refused

COUNTS = ("vocab_size", "dim", "num_heads", "num_kv_heads", "router_top_k")
WEIGHTS = (
    "aux_loss_coeff",
    "router_z_loss_coeff",
    "router_bias_rate",
    "mtp_loss_coeff",
    "gate_scale",
    "eval_capacity_factor",
)
FACTORS = ("rope_theta", "norm_eps", "capacity_factor", "moe_min_expansion", "moe_max_expansion")
WRONG_COUNT = "must be an integer or a list of integers"

REFUSED: list[Refusal] = [
    # wrong types
    ({"dim": True}, "model.dim=True", "must be an integer"),
    ({"dim": 896.5}, "model.dim=896.5", "must be an integer"),
    ({"dim": None}, "model.dim=None", "must be an integer"),
    ({"dim": "896"}, "model.dim='896'", "must be an integer"),
    ({"dim": [896]}, "model.dim=[896]", "must be an integer"),
    ({"rope_theta": "large"}, "model.rope_theta='large'", "must be a number"),
    ({"rope_theta": False}, "model.rope_theta=False", "must be a number"),
    ({"use_mtp": 1}, "model.use_mtp=1", "must be true or false"),
    ({"use_mtp": "yes"}, "model.use_mtp='yes'", "must be true or false"),
    ({"activation": 3}, "model.activation=3", "must be one of swiglu, relu2, gelu"),
    ({"num_experts": 4.5}, "model.num_experts=4.5", WRONG_COUNT),
    ({"num_experts": True}, "model.num_experts=True", WRONG_COUNT),
    ({"num_experts": []}, "model.num_experts=[]", WRONG_COUNT),
    ({"num_experts": [4, "4"]}, "model.num_experts=[4, '4']", "must be"),
    # choices, with the most similar valid one
    ({"router_type": "softmax_topkk"}, "model.router_type='softmax_topkk'", "softmax_topk?"),
    ({"router_type": "softmax_topkk"}, "model.router_type", "sigmoid, softmax_topk, switch"),
    ({"activation": "swigul"}, "model.activation='swigul'", "did you mean swiglu?"),
    ({"rope_scope": "head"}, "model.rope_scope='head'", "did you mean heads?"),
    # bounds
    *[
        ({name: value}, f"model.{name}={value}", "must be at least 1")
        for name in COUNTS
        for value in (0, -3)
    ],
    *[
        ({"num_layers": value}, f"model.num_layers={value}", "must be from 1 to 10000")
        for value in (0, -3, 10_001, 10**9)
    ],
    *[({name: -0.5}, f"model.{name}=-0.5", "must be at least 0") for name in WEIGHTS],
    *[
        ({name: value}, f"model.{name}={value}", "must be above 0")
        for name in FACTORS
        for value in (0.0, -1.0)
    ],
    *[
        ({name: value}, f"model.{name}={value}", "must be from 0 to 1")
        for name in ("rope_fraction", "router_threshold")
        for value in (-0.1, 1.1)
    ],
    *[
        ({name: 1.0}, f"model.{name}=1.0", "must be from 0 to 0.99")
        for name in ("expert_dropout", "router_jitter")
    ],
    ({"head_dim": -2}, "model.head_dim=-2", "must be at least 0"),
    ({"num_experts": -1}, "model.num_experts=-1", "must be at least 0"),
    # combinations
    (
        {"num_kv_heads": 5},
        "model.num_kv_heads=5",
        "must divide num_heads (28); one of 1, 2, 4, 7, 14, 28",
    ),
    ({"dim": 900}, "model.num_heads=28", "must divide dim (900), or set --model.head_dim"),
    ({"dim": 900}, "model.num_heads=28", "one of none; change num_kv_heads too"),
    ({"head_dim": 31}, "model.head_dim=31", "must be even"),
    ({"dim": 84}, "model.head_dim=3", "must be even"),
    (
        {"num_experts": [4, 4]},
        "model.num_experts=[4, 4]",
        "or one for each of the 24 layers, not 2",
    ),
    (
        {"num_experts": 0},
        "model.num_experts=0",
        "needs a base MLP; set --model.base_expansion",
    ),
    ({"num_experts": [4, 0], "num_layers": 2}, "model.num_experts=[4, 0]", "needs a base MLP"),
    ({"router_type": "sigmoid"}, "model.base_expansion=0", "the sigmoid router"),
    ({"router_top_k": 5}, "model.router_top_k=5", "must be at most num_experts (4)"),
    (
        {"router_top_k": 3, "num_experts": [4, 2], "num_layers": 2},
        "model.router_top_k=3",
        "must be at most num_experts (2)",
    ),
    (
        {"router_type": "switch", "router_top_k": 2},
        "model.router_top_k=2",
        "the switch router is top-1; use softmax_topk",
    ),
]


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_refused_in_one_line_that_names_setting_value_and_what_is_allowed(refusal):
    assert_refused(ModelConfig, refusal)


def test_an_infinite_number_is_refused_for_being_infinite():
    with pytest.raises(ConfigError, match="finite"):  # it is at least 0, so that is no reason
        ModelConfig(base_expansion=float("inf"))


def test_an_integer_that_no_float_can_hold_is_refused():
    with pytest.raises(ConfigError, match=r"model\.rope_theta"):
        ModelConfig(rope_theta=10**400)


def test_integers_become_floats_and_lists_become_tuples():
    counts: Any = [2, 3, 4]
    config = ModelConfig(rope_theta=500, num_layers=3, num_experts=counts)
    assert config.rope_theta == 500.0 and isinstance(config.rope_theta, float)
    assert config.num_experts == (2, 3, 4) and isinstance(config.num_experts, tuple)
    assert hash(config) == hash(ModelConfig(rope_theta=500.0, num_layers=3, num_experts=(2, 3, 4)))


def test_replacing_a_setting_checks_again():
    with pytest.raises(ConfigError, match=r"model\.dim=-1"):
        replace(ModelConfig(), dim=-1)


def test_both_recommendations_of_the_founding_document():
    assert ModelConfig().aux_loss_coeff == pytest.approx(MAXIMUM_SPEED.aux_loss_coeff / 10)
    assert (MAXIMUM_SPEED.base_width, STABILITY.base_width) == (0, 448)
    assert (MAXIMUM_SPEED.expert_widths[0], MAXIMUM_SPEED.expert_widths[-1]) == (2688, 3584)
    assert (STABILITY.expert_widths[0], STABILITY.expert_widths[-1]) == (1792, 2688)
    for config in (MAXIMUM_SPEED, STABILITY):  # values that the document does not change
        assert (config.num_layers, config.dim, config.num_heads, config.num_kv_heads) == (
            24,
            896,
            28,
            7,
        )
        assert (config.head_width, config.rotary_dims) == (32, 24)


@pytest.mark.parametrize(
    ("expansion", "dim", "width"),
    [
        (3.0, 896, 2688),
        (1.25, 896, 1152),
        (1.0, 96, 128),
        (1.0, 95, 64),
        (1.0, 160, 192),
        (0.01, 64, 64),
        (1.75, 896, 1600),
    ],
)
def test_a_hidden_width_is_a_multiple_of_64(expansion, dim, width):
    assert hidden_width(expansion, dim) == width  # 1120, 96 and 160 are halfway: up


@pytest.mark.parametrize(
    ("lowest", "highest", "num_layers", "widths"),
    [
        (1.0, 3.0, 5, (640, 960, 1280, 1600, 1920)),
        (3.0, 1.0, 3, (1920, 1280, 640)),
        (2.0, 2.0, 2, (1280, 1280)),
        (1.0, 1.25, 3, (640, 704, 832)),  # 720 and 800 before rounding
        (2.0, 9.0, 1, (1280,)),
    ],
)
def test_the_pyramid_by_hand(lowest, highest, num_layers, widths):
    config = ModelConfig(dim=640, num_heads=4, num_kv_heads=1, num_layers=num_layers,
                         moe_min_expansion=lowest, moe_max_expansion=highest)  # fmt: skip
    assert config.expert_widths == widths


@pytest.mark.parametrize(
    ("changes", "dims", "kv_heads"),
    [
        ({}, 24, 7),
        ({"rope_fraction": 0.5}, 16, 7),
        ({"rope_fraction": 0.33}, 10, 7),  # 10.56: always whole pairs
        ({"rope_fraction": 0.0}, 0, 7),
        ({"rope_fraction": 1.0}, 32, 7),
        ({"rope_scope": "heads"}, 32, 5),
        ({"rope_scope": "heads", "rope_fraction": 0.5}, 32, 4),  # 3.5
        ({"rope_scope": "heads", "rope_fraction": 0.0}, 32, 0),
        ({"head_dim": 128}, 96, 7),
    ],
)
def test_what_is_rotated(changes, dims, kv_heads):
    config = ModelConfig(**changes)
    assert (config.rotary_dims, config.rotary_kv_heads) == (dims, kv_heads)


@pytest.mark.parametrize(
    ("changes", "num_experts", "per_token", "gate"),
    [
        ({}, 4, 1, 1.0),
        ({"gate_scale": 2.5}, 4, 1, 2.5),
        ({"gate_scale": 0}, 4, 1, 4.0),
        ({"gate_scale": 0, "router_type": "switch"}, 4, 1, 4.0),
        ({"gate_scale": 0, "router_top_k": 3}, 4, 3, 1.0),
        ({"gate_scale": 0, "router_type": "sigmoid", "base_expansion": 1}, 4, 4, 1.0),
        ({"num_experts": 0, "base_expansion": 1}, 0, 0, 1.0),
    ],
)
def test_experts_of_a_token_and_the_factor_on_its_gates(changes, num_experts, per_token, gate):
    config = ModelConfig(**changes)
    assert config.experts_per_layer == (num_experts,) * 24
    assert config.experts_per_token(num_experts) == per_token
    assert config.gate_factor(num_experts) == gate


@pytest.mark.parametrize(("activation", "matrices"), [("swiglu", 3), ("relu2", 2), ("gelu", 2)])
def test_matrices_of_an_mlp(activation, matrices):
    assert ModelConfig(activation=activation).matrices_per_mlp == matrices
