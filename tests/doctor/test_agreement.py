"""Tests that backends with wrong results are noticed."""

from dataclasses import replace

import pytest
import torch

from moebius.config import ModelConfig, TrainConfig
from moebius.doctor.agreement import attention_agrees, experts_agree
from moebius.doctor.trial import TrialFailed
from moebius.model.attention import SDPA_EXPANDED, attend_expanded
from moebius.moe.experts import grouped
from tests.doctor.machines import CONFIG, CPU


def scaled(x, routing, weights):
    return grouped(x, routing, weights) * 1.001


def without_gate_gradient(x, routing, weights):
    return grouped(x, routing._replace(gate_TK=routing.gate_TK.detach()), weights)


def sentinels_to_the_first(x, routing, weights):
    expert_TK = routing.expert_TK % len(weights.w_up_EDF)
    return grouped(x, routing._replace(expert_TK=expert_TK), weights)


def not_a_number(x, routing, weights):
    return grouped(x, routing, weights) * torch.nan


@pytest.mark.parametrize("name", ["loop", "grouped", "float8"])
@pytest.mark.parametrize("activation", ["swiglu", "relu2", "gelu"])
def test_experts_that_are_right(name, activation):
    config = replace(CONFIG, model=ModelConfig(activation=activation))
    gradients = 5 if activation == "swiglu" else 4
    figures = experts_agree(name, config, CPU)
    assert figures.endswith(f"output and {gradients} gradients, 3 cases")


@pytest.mark.parametrize(
    "wrong", [scaled, without_gate_gradient, sentinels_to_the_first, not_a_number]
)
def test_experts_that_are_wrong(monkeypatch, wrong):
    monkeypatch.setattr("moebius.moe.experts.grouped", wrong)
    with pytest.raises(TrialFailed, match=r"largest error|did not get zero"):
        experts_agree("grouped", CONFIG, CPU)


@pytest.mark.parametrize("wrong", [without_gate_gradient, sentinels_to_the_first, not_a_number])
def test_float8_that_is_wrong_by_more_than_rounding(monkeypatch, wrong):
    monkeypatch.setattr("moebius.moe.float8.float8", wrong)
    with pytest.raises(TrialFailed, match=r"largest error|did not get zero"):
        experts_agree("float8", CONFIG, CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_that_is_right(dtype):
    config = replace(CONFIG, train=TrainConfig(device="cpu", dtype=dtype))
    assert attention_agrees("sdpa", config, CPU).endswith("with and without documents")


def test_attention_across_documents(monkeypatch):
    wrong = SDPA_EXPANDED._replace(attend=lambda q, k, v, mask: attend_expanded(q, k, v, None))
    monkeypatch.setattr("moebius.model.attention.SDPA_EXPANDED", wrong)
    with pytest.raises(TrialFailed, match="largest error"):
        attention_agrees("sdpa", CONFIG, CPU)
