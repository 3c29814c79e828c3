"""Extreme numbers in every setting: each gives a configuration or one line, and quickly."""

import contextlib
import time
from typing import get_origin

import pytest

from moebius.config import Config
from moebius.config.fields import members, settings
from moebius.config.files import read_config, to_toml
from moebius.errors import ConfigError

EXTREMES = (
    *("0", "-1", "1", "2147483648", "4611686018427387904", "9223372036854775807"),
    *("9223372036854775808", "1e-320", "1e308", "nan", "inf", "-inf"),
)
NUMBERS = [
    name
    for name, annotation in settings(Config).items()
    if any(member in (int, float) or get_origin(member) is tuple for member in members(annotation))
]
"""Every setting that may be a number."""
SECONDS = 2.0
"""How long reading a configuration may take at most."""


def extreme(name: str, value: str) -> Config | None:
    """Return the configuration with the setting at that value, or None if it is refused."""
    with contextlib.suppress(ConfigError):
        return read_config("tiny", [f"--{name}", value])
    return None


def test_every_number_among_the_settings_is_tried():
    assert {"model.vocab_size", "train.lr", "data.weights", "observe.cv.window"} <= set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_an_extreme_number_is_a_configuration_or_one_line(name, tmp_path):
    start = time.monotonic()
    for value in EXTREMES:
        try:
            config = read_config("tiny", [f"--{name}", value])
        except ConfigError as error:
            assert "\n" not in str(error)
            continue
        file = tmp_path / "config.toml"
        file.write_text(to_toml(config))
        assert read_config(str(file), []) == config
        assert all(width > 0 for width in config.model.expert_widths)
    assert time.monotonic() - start < SECONDS * len(EXTREMES)
