"""Tests of the variants of a configuration, and of equal active parameters."""

from dataclasses import replace

import pytest

from moebius.ablate.variants import SAME_COMPUTE, Variant, variants
from moebius.config import Config, TrainConfig
from moebius.config.files import read_config
from moebius.config.presets import PRESETS, dense_twin, preset
from moebius.cost.counts import active_parameters
from moebius.errors import ConfigError
from tests.ablate.configurations import CONFIG, MODEL, D


def names(compared: list[Variant]) -> list[str]:
    """Return the variants' names in order."""
    return [variant.name for variant in compared]


def test_the_configuration_itself_comes_first():
    compared = variants(CONFIG, ["model.base_expansion=1,2"])
    assert names(compared) == ["as given", "base_expansion=1", "base_expansion=2"]
    assert compared[0].config == CONFIG and not compared[0].flags
    assert [variant.model.base_expansion for variant in compared] == [0, 1, 2]


def test_a_variant_that_equals_it_is_not_measured_twice():
    compared = variants(CONFIG, ["model.base_expansion=1,0,0.0"])
    assert names(compared) == ["base_expansion=0.0 (as given)", "base_expansion=1"]


def test_several_fields_give_all_their_combinations():
    compared = variants(CONFIG, ["model.num_experts=8,2", "train.lr=1e-3,2e-3"])
    assert names(compared)[1:] == [
        f"num_experts={count}, lr={lr}" for count in (8, 2) for lr in ("1e-3", "2e-3")
    ]
    values = [(variant.model.num_experts, variant.config.train.lr) for variant in compared[1:]]
    assert values == [(8, 1e-3), (8, 2e-3), (2, 1e-3), (2, 2e-3)]


def test_a_key_that_two_sections_have_keeps_its_section_in_the_name():
    compared = variants(CONFIG, ["model.vocab_size=4096", "data.vocab_size=512,1024"])
    assert names(compared)[1] == "model.vocab_size=4096, data.vocab_size=512"


def test_a_value_with_commas_stands_in_brackets():
    compared = variants(CONFIG, ["model.num_experts=2,[2,4,8],[8,4,2]"])
    assert [variant.model.num_experts for variant in compared] == [4, 2, (2, 4, 8), (8, 4, 2)]
    compared = variants(CONFIG, ["data.source=[a.txt,b.txt],c[0-9].txt"])
    sources = [variant.config.data.source for variant in compared]
    assert sources == ["python-stdlib", "a.txt,b.txt", "c[0-9].txt"]


@pytest.mark.parametrize(
    ("over", "part"),
    [
        ("model.bas_expansion=0,1", "did you mean --model.base_expansion"),
        ("model.base_expansion=0,much", "'much'"),
        ("model.router_type=swich", "did you mean switch"),
        ("model.use_mtp=1", "true or false"),
        ("observe.progress=true,false", "one of model, data, train, parallel"),
        ("lr=1", "one of model, data, train, parallel"),
        ("model.dim", "a value is missing"),
        ("model.dim=64,,128", "a value is missing"),
    ],
)
def test_what_is_not_understood_is_an_error(over, part):
    with pytest.raises(ConfigError) as error:
        variants(CONFIG, [over])
    assert part in str(error.value)


def test_a_repeated_field_and_nothing_at_all_are_errors():
    with pytest.raises(ConfigError, match=r"model\.dim: repeated"):
        variants(CONFIG, ["model.dim=64", "model.dim=256"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        variants(CONFIG, [])


def test_a_combination_that_breaks_a_rule_is_a_variant_with_a_problem():
    compared = variants(CONFIG, ["model.num_experts=2,8", "model.router_top_k=1,4"])
    broken = [variant for variant in compared if variant.problem]
    assert names(broken) == ["num_experts=2, router_top_k=4"]
    assert broken[0].problem.startswith("model.router_top_k=4: ")
    assert broken[0].resolved is None and len(compared) == 5


@pytest.mark.parametrize(("top_k", "base"), [(1, 1), (1, 3), (2, 0), (2, 2), (1, 0.5)])
def test_base_and_experts_share_the_width_of_the_configuration(top_k, base):
    over = [f"model.base_expansion={base},0", f"model.router_top_k={top_k}"]
    variant = variants(CONFIG, over, iso_active=True)[1]
    assert variant.model.base_width + top_k * variant.model.expert_widths[0] == 4 * D
    assert active_parameters(variant.model) == active_parameters(MODEL)
    assert variant.is_resized and variant.config.train == CONFIG.train


def test_the_rows_of_a_larger_router_do_not_change_the_width():
    """Widths are multiples of 64, and a few more rows of the router are less than that."""
    variant = variants(CONFIG, ["model.num_experts=16"], iso_active=True)[1]
    assert variant.model.expert_widths == (4 * D,) * 3
    assert active_parameters(variant.model) - active_parameters(MODEL) == 3 * 12 * D


def test_a_width_between_two_multiples_becomes_one_in_the_first_and_one_in_the_last_layers():
    model = replace(
        MODEL, num_experts=12, router_top_k=3, moe_min_expansion=1, moe_max_expansion=1
    )
    config = replace(CONFIG, model=model)
    # the ideal width is (384 - 128) / 3 = 85
    resized = variants(config, ["model.base_expansion=1"], iso_active=True)[1].model
    assert resized.expert_widths == (64, 64, 128)
    assert active_parameters(resized) == active_parameters(model)


@pytest.mark.parametrize("layers", [2, 3, 4, 7, 40])
@pytest.mark.parametrize("over", ["base_expansion=1", "router_top_k=4", "num_experts=3"])
def test_resized_experts_are_as_near_as_their_widths_allow(layers, over):
    """The last of some multiples of 64 is less than half of one away, if layers may differ."""
    shape = {"num_layers": layers, "moe_min_expansion": 1, "moe_max_expansion": 1}
    model = replace(MODEL, num_experts=12, router_top_k=3, **shape)
    config = replace(CONFIG, model=model)
    resized = variants(config, [f"model.{over}"], iso_active=True)[1].model
    gap = abs(active_parameters(resized) - active_parameters(model))
    one_step = 3 * D * 64 * resized.router_top_k
    assert gap <= max(one_step / 2, SAME_COMPUTE * active_parameters(model))
    assert max(resized.expert_widths) - min(resized.expert_widths) in (0, 64)


def test_a_pyramid_keeps_its_slope():
    config = preset("standard")
    resized = variants(config, ["model.base_expansion=1"], iso_active=True)[1].model
    assert resized.moe_max_expansion / resized.moe_min_expansion == pytest.approx(4 / 3, rel=1e-4)
    assert active_parameters(resized) == pytest.approx(active_parameters(config.model), rel=1e-3)


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if any(preset(name).model.experts_per_layer)]
)
def test_the_flags_of_a_variant_make_it(name):
    over = ["model.base_expansion=0.75,2"]
    for variant in variants(preset(name), over, twin=True, iso_active=True):
        assert read_config(name, list(variant.flags)) == variant.config


def test_a_base_mlp_that_leaves_nothing_for_experts_says_so():
    compared = variants(CONFIG, ["model.base_expansion=4,3.5"], iso_active=True)
    assert "nothing is left for experts" in compared[1].problem and not compared[2].problem


def test_a_dense_variant_has_no_experts_to_resize():
    over = ["model.num_experts=0", "model.base_expansion=2"]
    assert "no experts to resize" in variants(CONFIG, over, iso_active=True)[1].problem


def test_the_twin_comes_last_and_is_not_resized():
    compared = variants(CONFIG, ["model.base_expansion=1"], twin=True, iso_active=True)
    assert names(compared) == ["as given", "base_expansion=1", "dense twin"]
    assert compared[-1].model == dense_twin(MODEL)
    assert compared[-1].is_twin and not compared[-1].is_resized
    assert names(variants(CONFIG, [], twin=True)) == ["as given", "dense twin"]


def test_a_dense_configuration_has_no_twin():
    with pytest.raises(ConfigError, match="dense already"):
        variants(preset("dense"), [], twin=True)


def test_runs_in_phases_are_not_compared():
    config = Config(train=TrainConfig(phases=({"until": 10**6},)))  # pyright: ignore
    with pytest.raises(ConfigError, match=r"train\.phases: ablations compare runs without"):
        variants(config, ["train.lr=1e-3,2e-3"])
