"""Planned times of whole steps, compared with measured ones and with each other."""

import pytest

from moebius.config.files import read_config
from moebius.cost.floor import optimizer_bytes
from moebius.cost.memory import Share
from moebius.cost.step_time import LAUNCHING_ROUTED, OPTIMIZER, step_seconds
from moebius.hardware.devices import DEVICES
from tests.cost.test_memory import HELD_OUT, RECOMPUTED

H100 = DEVICES["h100"]
SIXTEEN = ["--train.batch_size=16", "--train.micro_batch_size=16"]
GROUPED = "--parallel.expert_backend=grouped"

MEASURED: list[tuple[list[str], float]] = [
    (["standard", *SIXTEEN], 0.2008),
    (["standard", *SIXTEEN, GROUPED], 0.2265),
    (["dense", *SIXTEEN], 0.1851),
    (["pr_moe", *SIXTEEN], 0.2800),
    ([*HELD_OUT.split()], 0.2538),
    ([*HELD_OUT.split(), GROUPED], 0.2745),
    ([*RECOMPUTED.split(), "--train.micro_batch_size=8"], 0.1641),
    (["stability", "--train.batch_size=8", "--train.micro_batch_size=8"], 0.1933),
]
"""Seconds of a step, measured by `moebius profile` on an H100 with text of 800 tokens per
document."""


@pytest.mark.parametrize(("arguments", "measured"), MEASURED, ids=str)
def test_a_step_takes_what_was_measured(arguments, measured):
    preset, *flags = arguments
    config = read_config(preset, flags)
    seconds = step_seconds(config, H100, Share.whole(config))
    assert sum(seconds.values()) == pytest.approx(measured, rel=0.05)


def test_twice_the_tokens_take_no_more_than_twice_as_long():
    config = read_config("standard", [])
    once, twice = (
        sum(step_seconds(config, H100, Share(sequences)).values()) for sequences in (8, 16)
    )
    assert 1.5 * once < twice < 2 * once


def test_no_step_is_shorter_than_its_launching():
    config = read_config("standard", ["--train.seq_len=1"])
    seconds = step_seconds(config, H100, Share(1))
    assert sum(seconds.values()) == pytest.approx(config.model.num_layers * LAUNCHING_ROUTED)
    assert seconds["waiting"] > 0.5 * sum(seconds.values())


def test_recomputation_repeats_forward():
    plain, selective, full = (
        step_seconds(
            read_config("standard", [f"--parallel.activation_checkpointing={kind}"]),
            H100,
            Share(16),
        )
        for kind in ("none", "selective", "full")
    )
    assert plain["norms"] < selective["norms"] == full["norms"]
    assert plain["expert_gemms"] == selective["expert_gemms"] < full["expert_gemms"]
    assert plain["lm_head"] == full["lm_head"]


def test_the_optimizer_takes_the_time_of_its_bytes():
    config = read_config("standard", ["--train.optimizer=muon"])
    half = step_seconds(config, H100, Share(8, shared=0.5, experts=0.5))["optimizer"]
    whole = step_seconds(config, H100, Share(8))["optimizer"]
    assert half == pytest.approx(whole / 2)
    adamw = step_seconds(read_config("standard", []), H100, Share(8))["optimizer"]
    parameters = adamw * OPTIMIZER * H100.bytes / optimizer_bytes(read_config("standard", []))
    assert whole == pytest.approx(optimizer_bytes(config) * parameters / (OPTIMIZER * H100.bytes))


def test_gradients_are_added_up_between_passes():
    config = read_config("standard", [])
    assert "everything_else" not in step_seconds(config, H100, Share(8, passes=1))
    two, three = (
        step_seconds(config, H100, Share(8, passes))["everything_else"] for passes in (2, 3)
    )
    assert three == pytest.approx(2 * two)


def test_mtp_takes_three_heads_and_more():
    with_mtp = step_seconds(read_config("pr_moe", []), H100, Share(8))
    assert with_mtp["mtp"] > 3 * with_mtp["lm_head"]
    without = step_seconds(read_config("pr_moe", ["--model.use_mtp=false"]), H100, Share(8))
    assert "mtp" not in without
