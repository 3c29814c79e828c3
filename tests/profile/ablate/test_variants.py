"""Variants of a configuration, and the arithmetic of equal active parameters."""

from dataclasses import replace

import pytest

from moebius.config import Config, ModelConfig
from moebius.cost import active_parameters
from moebius.errors import ConfigError
from moebius.presets import PRESETS, dense_twin, preset
from moebius.profile.ablate.variants import Variant, variants

D = 128
GIVEN = Config(
    model=ModelConfig(
        vocab_size=2048, dim=D, num_layers=3, num_heads=4, num_kv_heads=2, num_experts=4,
        moe_min_expansion=4, moe_max_expansion=4,
    )
)  # fmt: skip


def names(found: list[Variant]) -> list[str]:
    return [variant.name for variant in found]


def test_the_configuration_as_given_comes_first():
    found = variants(GIVEN, ["model.base_expansion=1,2"])
    assert names(found) == ["as given", "base_expansion=1", "base_expansion=2"]
    assert found[0].config == GIVEN and not found[0].flags
    assert [variant.model.base_expansion for variant in found] == [0, 1, 2]


def test_a_variant_that_equals_it_is_not_measured_twice():
    found = variants(GIVEN, ["model.base_expansion=1,0,0.0"])
    assert names(found) == ["base_expansion=0.0 (as given)", "base_expansion=1"]


def test_several_fields_are_all_their_combinations():
    found = variants(GIVEN, ["model.num_experts=8,2", "train.lr=1e-3,2e-3"])
    assert names(found)[1:] == [f"num_experts={count}, lr={lr}" for count in (8, 2) for lr in ("1e-3", "2e-3")]
    values = [(each.model.num_experts, each.config.train.lr) for each in found[1:]]
    assert values == [(8, 1e-3), (8, 2e-3), (2, 1e-3), (2, 2e-3)]


def test_a_name_that_two_sections_have_is_told_apart():
    found = variants(GIVEN, ["model.vocab_size=4096", "data.vocab_size=512,1024"])
    assert names(found)[1] == "model.vocab_size=4096, data.vocab_size=512"


def test_a_value_with_commas_stands_in_brackets():
    counts = [each.model.num_experts for each in variants(GIVEN, ["model.num_experts=2,[2,4,8],[8,4,2]"])]
    assert counts == [4, 2, (2, 4, 8), (8, 4, 2)]
    sources = [each.config.data.source for each in variants(GIVEN, ["data.source=[a.txt,b.txt],c[0-9].txt"])]
    assert sources == ["python-stdlib", "a.txt,b.txt", "c[0-9].txt"]


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("model.bas_expansion=0,1", "did you mean --model.base_expansion"),
        ("model.base_expansion=0,much", "a number is wanted"),
        ("model.router_type=swich", "did you mean switch"),
        ("model.use_mtp=1", "true or false is wanted"),
        ("observe.progress=true,false", "of model, data, train, parallel"),
        ("lr=1", "of model, data, train, parallel"),
        ("model.dim", "a value is missing"),
        ("model.dim=64,,128", "a value is missing"),
    ],
)
def test_what_is_not_understood_is_an_error(over, said):
    with pytest.raises(ConfigError, match=said):
        variants(GIVEN, [over])


def test_a_field_given_twice_and_nothing_at_all_are_errors():
    with pytest.raises(ConfigError, match=r"model\.dim: given twice"):
        variants(GIVEN, ["model.dim=64", "model.dim=256"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        variants(GIVEN, [])


def test_a_combination_that_breaks_a_rule_is_a_variant_with_a_problem():
    found = variants(GIVEN, ["model.num_experts=2,8", "model.router_top_k=1,4"])
    broken = [variant for variant in found if variant.problem]
    assert names(broken) == ["num_experts=2, router_top_k=4"]
    assert broken[0].problem == "model.router_top_k=4: at most num_experts (2)"
    assert len(found) == 5


@pytest.mark.parametrize(("top_k", "base"), [(1, 1), (1, 3), (2, 0), (2, 2), (1, 0.5)])
def test_base_and_experts_share_the_width_of_those_given(top_k, base):
    variant = variants(GIVEN, [f"model.base_expansion={base},0", f"model.router_top_k={top_k}"], iso_active=True)[1]
    assert variant.model.base_width + top_k * variant.model.expert_widths[0] == 4 * D
    assert active_parameters(variant.model) == active_parameters(GIVEN.model)
    assert variant.is_resized and variant.config.train == GIVEN.train


def test_more_experts_are_only_made_up_for_their_routers():
    """Widths are multiples of 64: a few more rows of the router move nothing."""
    variant = variants(GIVEN, ["model.num_experts=16"], iso_active=True)[1]
    assert variant.model.expert_widths == (4 * D,) * 3
    assert active_parameters(variant.model) - active_parameters(GIVEN.model) == 3 * 12 * D


def test_a_width_between_two_multiples_goes_to_the_nearest():
    given = replace(GIVEN, model=replace(GIVEN.model, num_experts=12, router_top_k=3, moe_min_expansion=1, moe_max_expansion=1))
    half = variants(given, ["model.base_expansion=1"], iso_active=True)[1].model  # (384 - 128) / 3 = 85
    assert half.expert_widths[0] == 64
    assert active_parameters(half) - active_parameters(given.model) == 3 * 3 * D * (128 + 3 * 64 - 384)


def test_a_pyramid_keeps_its_slope():
    given = preset("standard")
    resized = variants(given, ["model.base_expansion=1"], iso_active=True)[1].model
    assert resized.moe_max_expansion / resized.moe_min_expansion == pytest.approx(4 / 3, rel=1e-4)
    assert active_parameters(resized) == pytest.approx(active_parameters(given.model), rel=1e-3)


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("dense")])
def test_the_flags_of_a_variant_make_it(name):
    from moebius.settings import read_config

    given = preset(name)
    for variant in variants(given, ["model.base_expansion=0.75,2"], twin=True, iso_active=True):
        assert read_config(name, list(variant.flags)) == variant.config


def test_a_base_mlp_that_leaves_nothing_for_experts_says_so():
    found = variants(GIVEN, ["model.base_expansion=4,3.5"], iso_active=True)
    assert "nothing left for experts" in found[1].problem and not found[2].problem
    dense = variants(GIVEN, ["model.num_experts=0", "model.base_expansion=2"], iso_active=True)[1]
    assert "no experts to resize" in dense.problem


def test_the_twin_comes_last_and_is_not_resized():
    found = variants(GIVEN, ["model.base_expansion=1"], twin=True, iso_active=True)
    assert names(found) == ["as given", "base_expansion=1", "dense twin"]
    assert found[-1].model == dense_twin(GIVEN.model) and found[-1].is_twin and not found[-1].is_resized
    assert names(variants(GIVEN, [], twin=True)) == ["as given", "dense twin"]
    with pytest.raises(ConfigError, match="dense already"):
        variants(preset("dense"), [], twin=True)
