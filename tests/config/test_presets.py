"""The presets: they match the founding document, and the models have the counted parameters."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from moebius.config import Config, ModelConfig
from moebius.config.files import read_config
from moebius.config.known_models import KNOWN_MODELS
from moebius.config.presets import PRESETS, dense_twin, preset
from moebius.cost import counts as cost
from moebius.errors import ConfigError
from moebius.model.transformer import Transformer
from tests.model.tiny import count_parameters

KNOWN = [function.__name__ for function in KNOWN_MODELS]
OWN = [name for name in PRESETS if name not in KNOWN]
LARGE = [name for name in OWN if name != "tiny"]
OVERRIDES = [{"num_layers": 12, "num_experts": count} for count in (4, 5, 6)]


def on_meta(model: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(model)


def count(modules: list[nn.Module | None]) -> int:
    return sum(count_parameters(module) for module in modules if module is not None)


def by_component(model: Transformer) -> dict[str, int]:
    """Return a model's number of parameters in each component of moebius.cost's `parameters`."""
    layers: list[Any] = [*model.layers]
    blocks = [layer.moe for layer in layers]
    norms = [module for module in model.modules() if isinstance(module, nn.RMSNorm)]
    attention = [layer.attention for layer in layers]
    head_norms = count(
        [norm for module in attention for norm in (module.query_norm, module.key_norm)]
    )
    mtp = model.mtp
    return {
        "embedding": count([model.embedding]),
        "attention": count(attention) - head_norms,
        "base_mlp": count([moe.base for moe in blocks]) + count([moe.mix for moe in blocks]),
        "router": count([moe.router for moe in blocks]),
        "experts": count([moe.experts for moe in blocks]),
        "norms": count([*norms]),
        "mtp": 0 if mtp is None else count_parameters(mtp) - count_parameters(mtp.norm),
        "lm_head": 0 if model.config.tie_embeddings else count([model.lm_head]),
    }


@pytest.mark.parametrize("changes", [{}, *OVERRIDES], ids=str)
@pytest.mark.parametrize("name", OWN)
def test_every_preset_takes_overrides_and_is_built_as_counted(name, changes):
    flags = [text for field, value in changes.items() for text in (f"--model.{field}", str(value))]
    config = read_config(name, flags)
    assert all(getattr(config.model, field) == value for field, value in changes.items())
    assert config.train == preset(name).train
    model = on_meta(config.model)
    assert by_component(model) == cost.parameters(config.model)
    assert count_parameters(model) == sum(cost.parameters(config.model).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"base_expansion": 1.0, "residual_mix": "learned", "num_experts": (0, 3, 2)},
        {"use_mtp": True, "tie_embeddings": True, "qk_norm": True},
        {
            "use_mtp": True,
            "base_expansion": 2.0,
            "residual_mix": "learned",
            "num_experts": (3, 0, 0),
        },
        {
            "activation": "relu2",
            "moe_min_expansion": 1.0,
            "moe_max_expansion": 5.0,
            "router_top_k": 2,
        },
        {"head_dim": 6, "num_kv_heads": 2, "router_type": "switch"},
    ],
    ids=str,
)
def test_every_variant_is_built_as_counted(changes):
    model = ModelConfig(
        **(
            {"vocab_size": 53, "dim": 48, "num_layers": 3, "num_heads": 4, "num_kv_heads": 4}
            | changes
        )
    )
    assert by_component(on_meta(model)) == cost.parameters(model)


@pytest.mark.parametrize("name", LARGE)
def test_the_large_presets_keep_the_shape_of_the_founding_document(name):
    config = preset(name)
    model = config.model
    assert (
        model.num_layers,
        model.dim,
        model.num_heads,
        model.num_kv_heads,
        model.head_width,
    ) == (24, 896, 28, 7, 32)
    assert (model.rope_fraction, model.rope_scope, model.rotary_dims) == (0.75, "dims", 24)
    assert config.train.dtype == "bfloat16"


def test_pr_moe_is_the_original():
    model = preset("pr_moe").model
    assert (model.base_expansion, model.moe_min_expansion, model.moe_max_expansion) == (
        1.25,
        1.25,
        1.75,
    )
    assert (model.router_type, model.use_mtp) == ("sigmoid", True)
    assert (model.expert_widths[0], model.expert_widths[-1], model.base_width) == (
        1152,
        1600,
        1152,
    )  # rounded to 64


def test_standard_is_the_recommendation_for_speed():
    model = preset("standard").model
    assert (model.base_expansion, model.moe_min_expansion, model.moe_max_expansion) == (
        0.0,
        3.0,
        4.0,
    )
    assert (model.router_type, model.router_top_k, model.aux_loss_coeff, model.use_mtp) == (
        "softmax_topk",
        1,
        0.1,
        False,
    )


def test_stability_is_the_recommendation_for_stability():
    model = preset("stability").model
    assert (model.base_expansion, model.moe_min_expansion, model.moe_max_expansion) == (
        0.5,
        2.0,
        3.0,
    )
    assert (model.router_type, model.router_threshold) == ("sigmoid", 0.1)


def test_switch_is_standard_with_another_router():
    standard, switch = preset("standard"), preset("switch")
    assert switch.model.router_type == "switch"
    assert replace(switch, model=replace(switch.model, router_type="softmax_topk")) == standard


def test_dense_is_the_dense_twin_of_standard():
    standard, dense = preset("standard").model, preset("dense").model
    assert not any(dense.experts_per_layer)
    assert cost.active_parameters(dense) == pytest.approx(
        cost.active_parameters(standard), rel=0.005
    )
    # by hand: one expert per token, 3 * 896 to 4 * 896 wide, mean 3.5 * 896 = 3136 = 49 * 64
    assert dense.base_width == 3136


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if preset(name).model.router_type != "sigmoid"]
)
def test_a_dense_twin_has_the_active_parameters_of_its_original(name):
    model = preset(name).model
    twin = dense_twin(model)
    assert not any(twin.experts_per_layer)
    without_router = cost.active_parameters(model) - cost.parameters(model)["router"]
    assert cost.active_parameters(twin) == pytest.approx(without_router, rel=0.005)


def test_the_dense_twin_of_a_layered_model():
    model = ModelConfig(
        dim=64,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        num_experts=(0, 3, 2),
        router_top_k=2,
        base_expansion=1.0,
        moe_min_expansion=1.0,
        moe_max_expansion=3.0,
        residual_mix="learned",
    )
    assert model.expert_widths == (64, 128, 192)
    # the base MLP, and two experts per token in the second and the third layer:
    # 64 + (2 * 128 + 2 * 192) / 3 = 277.3, rounded to a multiple of 64
    assert dense_twin(model).base_width == 256


def test_dense_112m_by_hand():
    model = preset("dense_112m").model
    attention = 24 * (
        896 * 28 * 32 + 2 * 896 * 7 * 32 + 28 * 32 * 896
    )  # query; key and value; output
    mlps = 24 * 2 * 896 * model.base_width
    norms = (2 * 24 + 1) * 896
    counted = cost.parameters(model)
    total = sum(counted.values()) - counted["embedding"] - counted["lm_head"]
    assert total == attention + mlps + norms
    assert total == pytest.approx(112e6, rel=0.005)
    assert (round(attention / 1e6, 1), round(mlps / 1e6, 1), model.base_width) == (
        48.2,
        63.3,
        1472,
    )  # as its docstring says
    assert counted["router"] == counted["experts"] == counted["mtp"] == 0


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("olmoe", 6.92e9, 1.28e9),
        ("qwen3_moe_30b", 30.5e9, 3.3e9),
        ("mixtral", 46.7e9, 12.9e9),
        ("llama3_8b", 8.03e9, 8.03e9),
    ],
)
def test_known_models_have_the_published_numbers_of_parameters(name, total, active):
    """Published numbers of active parameters count the embedding, too."""
    model = preset(name).model
    counted = cost.parameters(model)
    assert sum(counted.values()) == pytest.approx(total, rel=0.002)
    embedded = cost.active_parameters(model) + counted["embedding"]
    assert embedded == pytest.approx(active, rel=0.02)
    assert model.rotary_dims == model.head_width


def test_every_known_model_is_among_the_parameters_that_are_tested():
    assert set(KNOWN) == {"olmoe", "qwen3_moe_30b", "mixtral", "llama3_8b"}


def test_the_nearest_preset():
    with pytest.raises(
        ConfigError,
        match=r"preset 'prmoe': must be one of tiny, .* or a TOML file; did you mean pr_moe\?",
    ):
        preset("prmoe")
    assert all(isinstance(preset(name), Config) for name in PRESETS)
