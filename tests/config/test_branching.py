"""Every setting either may change in a branch or is kept for a reason."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from moebius.config import Config
from moebius.config.branching import (
    CHANGEABLE,
    KEPT,
    at_its_place,
    branched_config,
)
from moebius.config.fields import settings
from moebius.config.resuming import CHANGEABLE as RESUMABLE
from moebius.config.resuming import is_listed
from moebius.errors import ConfigError
from moebius.model.transformer import Transformer
from moebius.train.state import model_tensors
from tests.train.models import small_model

PAGE = Path(__file__).parents[2] / "docs" / "runs.md"


def changed(config: Config, **values: Any) -> Config:
    """Return the configuration with some settings, such as `train__lr`, replaced."""
    for name, value in values.items():
        section, _, key = name.partition("__")
        inner = replace(getattr(config, section), **{key: value})
        config = replace(config, **{section: inner})
    return config


@pytest.mark.parametrize("setting", settings(Config))
def test_every_setting_may_change_or_is_kept_for_a_reason(setting):
    assert is_listed(setting, CHANGEABLE) or is_listed(setting, KEPT)


def test_the_lists_name_nothing_that_does_not_exist():
    names = {field.name for field in fields(Config)} | set(settings(Config))
    assert {*CHANGEABLE, *KEPT} <= names


def test_a_branch_may_change_all_that_a_resumed_run_may():
    assert set(RESUMABLE) <= set(CHANGEABLE)


def test_the_page_lists_what_may_change():
    _, _, section = PAGE.read_text("utf-8").partition("### What may change in a branch\n")
    section = section.partition("\n## ")[0]
    names = {*CHANGEABLE, *KEPT} - set(RESUMABLE)
    assert [name for name in names if f"`{name}`" not in section] == []


@pytest.mark.parametrize(
    "change",
    [
        {"train__lr": 1.0},
        {"train__seq_len": 64},
        {"train__seed": 3},
        {"train__name": "other"},
        {"data__weights": 2.0},
        {"data__source": "elsewhere"},
        {"model__rope_theta": 5e5},
        {"model__aux_loss_coeff": 0.0},
    ],
)
def test_what_a_branch_may_change(small, change):
    after = changed(small, **change)
    assert branched_config(small, after) == after


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model__dim": 64}, "the weights do not fit another model"),
        ({"model__num_heads": 1}, "the weights do not fit another model"),
        ({"model__qk_norm": True}, "the weights do not fit another model"),
        ({"data__vocab_size": 256}, "the tokens are those of the run's tokenizer"),
        ({"train__optimizer": "muon"}, "the saved state is that optimizer's"),
        ({"train__common_start": 0.5}, "the experts have begun with it"),
    ],
)
def test_what_a_branch_keeps_is_refused_by_name_with_the_reason(small, change, reason):
    ((name, value),) = change.items()
    setting = name.replace("__", ".")
    with pytest.raises(ConfigError, match=rf"{setting}={value!r}: a branch keeps {setting}=.*"):
        branched_config(small, changed(small, **change))
    with pytest.raises(ConfigError, match=reason):
        branched_config(small, changed(small, **change))


@pytest.mark.parametrize("name", [n for n in CHANGEABLE if n.startswith("model.")])
def test_the_weights_fit_whatever_a_branch_changes_in_the_model(name):
    key = name.partition(".")[2]
    model = small_model()
    before = getattr(model.config, key)
    value = "sequence" if isinstance(before, str) else before / 2 + 0.25
    other = Transformer(replace(model.config, **{key: value}))
    shapes = {n: tensor.shape for n, tensor in model_tensors(other).items()}
    assert shapes == {n: tensor.shape for n, tensor in model_tensors(model).items()}


def test_a_common_start_ends_at_the_same_step(small):
    before = changed(small, train__common_start=0.25)
    after = branched_config(before, changed(before, train__steps=24))
    assert after.train.common_start * after.train.steps == 3


def test_the_text_of_a_step_is_where_it_is_now(small):
    moved = changed(small, data__source="moved", data__cache="other", train__lr=1.0)
    config = at_its_place(small, moved)
    assert config == changed(small, data__source="moved", data__cache="other")
