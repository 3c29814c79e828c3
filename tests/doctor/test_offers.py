"""Tests of which backends a machine can run."""

import pytest
import torch

from moebius.config import Config, ParallelConfig, TrainConfig
from moebius.doctor.offers import chosen, flag_for, offers
from tests.doctor.machines import CPU


@pytest.mark.parametrize(
    ("device", "used", "unavailable"),
    [("cpu", {"loop", "sdpa"}, {"triton", "flex"}), ("cuda", {"flex"}, set())],
)
def test_every_backend_is_listed(device, used, unavailable, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    states = {offer.name: offer.state for offer in offers(Config(), torch.device(device))}
    assert states.keys() == {"loop", "grouped", "triton", "float8", "sdpa", "flex"}
    assert used <= {name for name, state in states.items() if state == "used"}
    assert unavailable <= {name for name, state in states.items() if state == "unavailable"}
    assert list(states.values()).count("used") == 2


def test_an_offer_says_why_it_is_used_or_how_to_get_it_or_what_runs_instead():
    config = Config(parallel=ParallelConfig(expert_backend="grouped"))
    reasons = {offer.name: offer.reason for offer in offers(config, CPU)}
    assert reasons["grouped"] == "asked for"
    assert reasons["loop"] == "--parallel.expert_backend loop"
    assert reasons["float8"] == "--train.expert_dtype float8, emulated"
    assert reasons["flex"].startswith("instead: sdpa ")


def test_float8_is_not_used_where_another_backend_is_asked_for():
    config = Config(train=TrainConfig(expert_dtype="float8"))
    assert chosen(config, CPU, "experts", "loop").experts == "loop"
    assert chosen(config, CPU, "attention", "sdpa").experts == "float8"


def test_a_flag_asks_for_its_backend():
    assert flag_for("attention", "flex") == "--parallel.attention_backend flex"
    assert flag_for("experts", "float8") == "--train.expert_dtype float8"
