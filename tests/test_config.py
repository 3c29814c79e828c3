"""What a configuration refuses, in what words, and the shapes that follow from it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from moebius.config import Config, DataConfig, ModelConfig, ObserveConfig, ParallelConfig, TrainConfig, hidden_width
from moebius.errors import ConfigError

SECTIONS: dict[str, Callable[..., Any]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "parallel": ParallelConfig,
    "observe": ObserveConfig,
    "config": Config,
}

# section, arguments, the field named and its value as the message shows it, what else the message says
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    # wrong types
    ("model", {"dim": True}, "model.dim=True", "an integer is wanted"),
    ("model", {"dim": 896.0}, "model.dim=896.0", "an integer is wanted"),
    ("model", {"dim": None}, "model.dim=None", "an integer is wanted"),
    ("model", {"dim": "896"}, "model.dim='896'", "an integer is wanted"),
    ("model", {"dim": [896]}, "model.dim=[896]", "an integer is wanted"),
    ("model", {"rope_theta": "large"}, "model.rope_theta='large'", "a number is wanted"),
    ("model", {"rope_theta": False}, "model.rope_theta=False", "a number is wanted"),
    ("model", {"use_mtp": 1}, "model.use_mtp=1", "true or false is wanted"),
    ("model", {"use_mtp": "yes"}, "model.use_mtp='yes'", "true or false is wanted"),
    ("model", {"activation": 3}, "model.activation=3", "one of swiglu, relu2, gelu is wanted"),
    ("model", {"num_experts": 4.0}, "model.num_experts=4.0", "an integer or a list of integers is wanted"),
    ("model", {"num_experts": True}, "model.num_experts=True", "an integer or a list of integers is wanted"),
    ("model", {"num_experts": []}, "model.num_experts=[]", "an integer or a list of integers is wanted"),
    ("model", {"num_experts": [4, "4"]}, "model.num_experts=[4, '4']", "is wanted"),
    ("data", {"source": 3}, "data.source=3", "text is wanted"),
    ("train", {"steps": "many"}, "train.steps='many'", "an integer is wanted"),
    ("observe", {"progress": 0}, "observe.progress=0", "true or false is wanted"),
    ("config", {"model": {}}, "config.model={}", "ModelConfig is wanted"),
    # choices, with the nearest right one
    ("model", {"router_type": "softmax_topkk"}, "model.router_type='softmax_topkk'", "did you mean softmax_topk?"),
    ("model", {"router_type": "softmax_topkk"}, "model.router_type", "one of sigmoid, softmax_topk, switch"),
    ("model", {"activation": "swigul"}, "model.activation='swigul'", "did you mean swiglu?"),
    ("model", {"rope_scope": "head"}, "model.rope_scope='head'", "did you mean heads?"),
    ("train", {"optimizer": "adam"}, "train.optimizer='adam'", "did you mean adamw?"),
    ("train", {"device": "cdua"}, "train.device='cdua'", "did you mean cuda?"),
    ("train", {"device": "cuda:x"}, "train.device='cuda:x'", "auto, cpu, cuda or cuda:N"),
    ("parallel", {"expert_backend": "group"}, "parallel.expert_backend='group'", "did you mean grouped?"),
    # ranges
    *[("model", {name: value}, f"model.{name}={value}", "must be at least 1")
      for name in ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "router_top_k") for value in (0, -3)],
    *[("model", {name: -0.5}, f"model.{name}=-0.5", "must be at least 0")
      for name in ("base_expansion", "aux_loss_coeff", "router_z_loss_coeff", "mtp_loss_coeff", "gate_scale")],
    *[("model", {name: value}, f"model.{name}={value}", "must be above 0")
      for name in ("rope_theta", "norm_eps", "capacity_factor", "moe_min_expansion", "moe_max_expansion")
      for value in (0.0, -1.0)],
    *[("model", {name: value}, f"model.{name}={value}", "must be from 0 to 1")
      for name in ("rope_fraction", "router_threshold") for value in (-0.1, 1.1)],
    ("model", {"expert_dropout": 1.0}, "model.expert_dropout=1.0", "must be from 0 to 0.99"),
    ("model", {"head_dim": -2}, "model.head_dim=-2", "must be at least 0"),
    ("model", {"num_experts": -1}, "model.num_experts=-1", "at least 0"),
    ("data", {"val_fraction": 0.0}, "data.val_fraction=0.0", "above 0 and below 1"),
    ("data", {"val_fraction": 1}, "data.val_fraction=1.0", "above 0 and below 1"),
    ("data", {"source": " "}, "data.source=' '", "must not be empty"),
    ("data", {"vocab_size": -1}, "data.vocab_size=-1", "must be at least 0"),
    *[("train", {name: 0}, f"train.{name}=0", "must be at least 1")
      for name in ("steps", "batch_size", "seq_len", "log_every", "eval_tokens")],
    *[("train", {name: -1}, f"train.{name}=-1", "must be at least 0")
      for name in ("micro_batch_size", "seed", "warmup_steps", "eval_every", "checkpoint_every")],
    ("train", {"lr": 0}, "train.lr=0.0", "must be above 0"),
    ("train", {"beta1": 1}, "train.beta1=1.0", "must be from 0 to 0.99999"),
    ("train", {"decay_fraction": 1.5}, "train.decay_fraction=1.5", "must be from 0 to 1"),
    # combinations
    ("model", {"num_kv_heads": 5}, "model.num_kv_heads=5", "must divide num_heads (28); one of 1, 2, 4, 7, 14, 28"),
    ("model", {"dim": 900}, "model.num_heads=28", "must divide dim (900)"),
    ("model", {"head_dim": 31}, "model.head_dim=31", "must be even"),
    ("model", {"dim": 84}, "model.head_dim=3", "must be even"),
    ("model", {"num_experts": [4, 4]}, "model.num_experts=[4, 4]", "2 numbers for 24 layers"),
    ("model", {"num_experts": 0}, "model.num_experts=0", "needs a base MLP; set --model.base_expansion"),
    ("model", {"num_experts": [4, 0], "num_layers": 2}, "model.num_experts=[4, 0]", "needs a base MLP"),
    ("model", {"router_type": "sigmoid"}, "model.base_expansion=0", "sigmoid router"),
    ("model", {"router_top_k": 5}, "model.router_top_k=5", "at most num_experts (4)"),
    ("model", {"router_top_k": 3, "num_experts": [4, 2], "num_layers": 2}, "model.router_top_k=3", "at most num_experts (2)"),
    ("model", {"router_type": "switch", "router_top_k": 2}, "model.router_top_k=2", "top-1; use softmax_topk"),
    ("train", {"batch_size": 12, "micro_batch_size": 5}, "train.micro_batch_size=5", "one of 1, 2, 3, 4, 6, 12"),
    *[("train", {"name": name}, f"train.name={name!r}", "1 to 64 letters, digits")
      for name in ("../up", "a/b", "..", ".", "a b", "ä", "x" * 65, "a\n")],
    ("config", {"data": DataConfig(vocab_size=60_000)}, "data.vocab_size=60000", "at most model.vocab_size (50304)"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "arguments", "named", "allowed"), REFUSED)
def test_refused_in_one_line_that_names_field_value_and_what_is_allowed(section, arguments, named, allowed):
    with pytest.raises(ConfigError) as caught:
        SECTIONS[section](**arguments)
    message = str(caught.value)
    assert message.startswith(named) and allowed in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


NUMBERS = [
    (section, each.name)
    for section in ("model", "data", "train")
    for each in dataclasses.fields(SECTIONS[section])  # pyright: ignore[reportArgumentType]
    if isinstance(each.default, float)
]


@pytest.mark.parametrize(("section", "name"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_nan_or_infinite(section, name, value):
    with pytest.raises(ConfigError) as caught:
        SECTIONS[section](**{name: value})
    assert str(caught.value).startswith(f"{section}.{name}={value}")


def test_an_infinite_number_is_refused_for_being_infinite():
    with pytest.raises(ConfigError, match="finite"):  # "must be at least 0" is no reason: it is
        ModelConfig(base_expansion=math.inf)


def test_an_integer_no_float_holds_is_refused_too():
    with pytest.raises(ConfigError, match=r"model\.rope_theta"):
        ModelConfig(rope_theta=10**400)


def test_integers_become_floats_and_lists_tuples():
    config = ModelConfig(rope_theta=500, num_layers=3, num_experts=[2, 3, 4])  # pyright: ignore[reportArgumentType]
    assert config.rope_theta == 500.0 and isinstance(config.rope_theta, float)
    assert config.num_experts == (2, 3, 4) and isinstance(config.num_experts, tuple)
    assert hash(config) == hash(ModelConfig(rope_theta=500.0, num_layers=3, num_experts=(2, 3, 4)))


@pytest.mark.parametrize("section", SECTIONS)
def test_frozen_and_by_keyword(section):
    config = SECTIONS[section]()
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))
    with pytest.raises(TypeError):
        SECTIONS[section](getattr(config, name))


def test_replacing_a_field_checks_again():
    with pytest.raises(ConfigError, match=r"model\.dim=-1"):
        dataclasses.replace(ModelConfig(), dim=-1)


def test_both_recommendations_of_the_founding_document():
    speed = ModelConfig(
        # Remove base MLP entirely
        base_expansion=0.0,  # No base MLP
        # Larger experts (since no base overhead)
        moe_min_expansion=3.0,  # Was 1.25
        moe_max_expansion=4.0,  # Was 1.75
        # Better routing
        router_type="softmax_topk",  # Guaranteed activation
        router_top_k=1,  # Exactly 1 expert
        # Strong load balancing
        aux_loss_coeff=0.1,  # 10x stronger than default
        # Optional: Disable MTP for max speed
        use_mtp=False,  # Saves 31% compute
    )
    stability = ModelConfig(
        # Small base MLP
        base_expansion=0.5,  # Minimal safety net
        # Standard experts
        moe_min_expansion=2.0,
        moe_max_expansion=3.0,
        # Hybrid approach
        router_type="sigmoid",
        router_threshold=0.1,
    )
    assert ModelConfig().aux_loss_coeff == pytest.approx(speed.aux_loss_coeff / 10)
    assert (speed.base_width, stability.base_width) == (0, 448)
    assert (speed.expert_widths[0], speed.expert_widths[-1]) == (2688, 3584)
    assert (stability.expert_widths[0], stability.expert_widths[-1]) == (1792, 2688)
    for config in (speed, stability):  # what the document keeps
        assert (config.num_layers, config.dim, config.num_heads, config.num_kv_heads) == (24, 896, 28, 7)
        assert (config.head_width, config.rotary_dims) == (32, 24)


@pytest.mark.parametrize(
    ("expansion", "dim", "width"),
    [(3.0, 896, 2688), (1.25, 896, 1152), (1.0, 96, 128), (1.0, 95, 64), (1.0, 160, 192), (0.01, 64, 64), (1.75, 896, 1600)],
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


@pytest.mark.parametrize(("batch", "micro", "steps"), [(12, 0, 1), (12, 12, 1), (12, 3, 4)])
def test_gradient_accumulation(batch, micro, steps):
    assert TrainConfig(batch_size=batch, micro_batch_size=micro).accumulation_steps == steps


@pytest.mark.parametrize(("activation", "matrices"), [("swiglu", 3), ("relu2", 2), ("gelu", 2)])
def test_matrices_of_an_mlp(activation, matrices):
    assert ModelConfig(activation=activation).matrices_per_mlp == matrices
