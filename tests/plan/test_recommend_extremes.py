"""Plans of configurations with extreme numbers: each is a plan or one line, and quickly."""

import time

import pytest

from moebius.errors import ConfigError
from moebius.hardware.devices import DEVICES
from moebius.plan.recommend import plan
from moebius.plan.wording import as_json, lines
from tests.config.test_fields_extremes import EXTREMES, NUMBERS, extreme

SECONDS = 5.0
"""How long a plan may take at most."""


def check_plans(name: str, values: tuple[str, ...]) -> None:
    """Plan a run with each of the values on one and on eight GPUs."""
    for config in filter(None, (extreme(name, value) for value in values)):
        for gpus in (1, 8):
            start = time.monotonic()
            try:
                planned = plan(config, DEVICES["h100"], gpus)
                assert as_json(planned) and lines(planned)
            except ConfigError as error:
                assert "\n" not in str(error)
            assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize("name", ["train.batch_size", "model.moe_max_expansion", "model.dim"])
def test_a_huge_number_is_a_plan_or_one_line(name):
    check_plans(name, EXTREMES)


@pytest.mark.heavy
@pytest.mark.parametrize("name", NUMBERS)
def test_an_extreme_number_is_a_plan_or_one_line(name):
    check_plans(name, EXTREMES)


def test_a_batch_beyond_the_precision_of_floats_is_divided_exactly():
    config = extreme("train.batch_size", str(2**60 + 8))
    assert config is not None
    with pytest.raises(ConfigError, match="must be from 1 to 1000000"):
        plan(config, DEVICES["h100"], 2**63)
    assert plan(config, DEVICES["h100"], 8).config.train.batch_size == 2**60 + 8
