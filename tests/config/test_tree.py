"""The whole configuration: rules for every section, and for settings of two sections."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from moebius.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObserveConfig,
    ParallelConfig,
    TrainConfig,
)
from moebius.errors import ConfigError
from tests.config.refusals import Refusal, assert_refused

SECTIONS: dict[str, Callable[..., Any]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "parallel": ParallelConfig,
    "observe": ObserveConfig,
    "config": Config,
}

REFUSED: list[Refusal] = [
    ({"model": {}}, "config.model={}", "must be of type ModelConfig"),
    (
        {"data": DataConfig(vocab_size=60_000)},
        "data.vocab_size=60000",
        "must be at most model.vocab_size (50304)",
    ),
    (
        {
            "train": TrainConfig(expert_dtype="float8"),
            "model": ModelConfig(dim=40, num_heads=4, num_kv_heads=2),
        },
        "train.expert_dtype='float8'",
        "needs a model.dim that is a multiple of 16, not 40",
    ),
]


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal[1])
def test_refused_in_one_line_that_names_setting_value_and_what_is_allowed(refusal):
    assert_refused(Config, refusal)


NUMBERS = [
    (section, field.name)
    for section in ("model", "data", "train")
    for field in dataclasses.fields(SECTIONS[section])  # pyright: ignore[reportArgumentType]
    if isinstance(field.default, float)
]


@pytest.mark.parametrize(("section", "name"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_nan_or_infinite(section, name, value):
    with pytest.raises(ConfigError) as caught:
        SECTIONS[section](**{name: value})
    assert str(caught.value).startswith(f"{section}.{name}={value}")


INTEGERS = [
    (section, field.name)
    for section in ("model", "data", "train", "parallel")
    for field in dataclasses.fields(SECTIONS[section])  # pyright: ignore[reportArgumentType]
    if type(field.default) is int
]


@pytest.mark.parametrize(("section", "name"), INTEGERS)
@pytest.mark.parametrize("value", [2**63, -(2**70), 10**30])
def test_no_integer_may_exceed_64_bits(section, name, value):
    with pytest.raises(ConfigError) as caught:
        SECTIONS[section](**{name: value})
    assert str(caught.value).startswith(f"{section}.{name}={value}: must be ")


@pytest.mark.parametrize("section", SECTIONS)
def test_frozen_and_by_keyword(section):
    config = SECTIONS[section]()
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))
    with pytest.raises(TypeError):
        SECTIONS[section](getattr(config, name))
