"""Runs with extreme numbers: each begins, or is refused in one line before anything is created."""

from pathlib import Path

import pytest

from moebius.config import Config
from moebius.config.files import override
from moebius.config.flags import parse_flags
from moebius.errors import ConfigError, MoebiusError
from moebius.train.session import start
from moebius.train.step import train_step
from tests.config.test_fields_extremes import EXTREMES, NUMBERS
from tests.train.runs import silent


def begin(small: Config, name: str, value: str) -> None:
    """Begin a run with a setting at an extreme value, and make a step if a batch is small."""
    config = override(small, parse_flags([f"--{name}", value]))
    session = start(config, "small", silent)
    if config.train.batch_size <= 64:
        feed, state = session.feed, session.state
        train_step(state, feed.at(state.sequences), feed.separator, config.train)


@pytest.mark.parametrize(
    "name", ["model.vocab_size", "model.head_dim", "model.num_experts", "model.moe_max_expansion"]
)
@pytest.mark.parametrize("value", ["2147483648", "4611686018427387904", "1e308"])
def test_a_model_that_no_machine_can_hold_is_refused_first(small, name, value):
    with pytest.raises(ConfigError, match=r"need .* GB of memory|must be") as refusal:
        begin(small, name, value)
    assert "\n" not in str(refusal.value)
    assert not Path(small.data.cache).exists()  # no text was prepared


@pytest.mark.heavy
@pytest.mark.parametrize("name", NUMBERS)
def test_an_extreme_number_begins_a_run_or_is_one_line(small, name):
    for value in EXTREMES:
        try:
            begin(small, name, value)
        except MoebiusError as error:
            assert "\n" not in str(error)
