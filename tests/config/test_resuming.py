"""Every setting either may change in a resumed run or is kept for a reason."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from moebius.config import Config, TrainConfig
from moebius.config.fields import settings
from moebius.config.resuming import CHANGEABLE, KEPT, changes, is_listed, resumed_config
from moebius.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "runs.md"


def with_train(**values: Any) -> Config:
    """Return a configuration with some train settings replaced."""
    return Config(train=TrainConfig(**values))


@pytest.mark.parametrize("setting", settings(Config))
def test_every_setting_is_in_exactly_one_list(setting):
    assert is_listed(setting, CHANGEABLE) + is_listed(setting, KEPT) == 1


def test_the_lists_name_nothing_that_does_not_exist():
    names = {field.name for field in fields(Config)} | set(settings(Config))
    assert {*CHANGEABLE, *KEPT} <= names


def test_the_page_lists_what_may_change():
    _, _, section = PAGE.read_text("utf-8").partition("### What may change\n")
    section = section.partition("\n## ")[0]
    missing = [name for name in (*CHANGEABLE, *KEPT) if f"`{name}`" not in section]
    assert missing == []


def test_a_change_has_the_old_and_the_new_value():
    before, after = with_train(steps=10, lr=1e-3), with_train(steps=14, lr=1e-3)
    assert changes(before, before) == {}
    assert changes(before, after) == {"train.steps": (10, 14)}
    assert resumed_config(before, after) == after


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("train", "seed", 1),
        ("train", "seq_len", 64),
        ("train", "optimizer", "muon"),
        ("train", "out", "elsewhere"),
        ("train", "common_start", 0.5),
        ("data", "weights", 2.0),
        ("data", "document_masking", False),
        ("model", "router_top_k", 2),
        ("model", "aux_loss_coeff", 0.5),
    ],
)
def test_what_a_run_keeps_is_refused_by_name_with_the_reason(section, setting, value):
    before = Config()
    after = replace(before, **{section: replace(getattr(before, section), **{setting: value})})
    match = rf"^{section}\.{setting}=.*: a resumed run keeps {section}\.{setting}=.*, because .*;"
    with pytest.raises(ConfigError, match=match):
        resumed_config(before, after)


@pytest.mark.parametrize("steps", [10, 49, 60, 77, 99, 100, 101, 300, 12345])
@pytest.mark.parametrize("share", [0.0, 0.07, 0.3, 1 / 3, 0.5, 1.0])
def test_a_common_start_ends_at_the_same_step(share, steps):
    before = with_train(steps=70, common_start=share)
    after = resumed_config(before, with_train(steps=steps, common_start=share))

    def common_steps(config: Config) -> list[int]:
        train = config.train
        return [n for n in range(train.steps) if n < train.common_start * train.steps]

    assert common_steps(after) == common_steps(before)[:steps]
