"""The experts for a few tokens give what the reference gives."""

from typing import cast

import pytest
import torch

from moebius.config import Activation
from moebius.moe.experts import ExpertWeights, grouped, loop
from moebius.moe.few_tokens import FEW_ON_GPU, every_expert, few_or_many, gathered
from moebius.moe.router import Routing

D, F, E = 8, 6, 5


def routing_of(expert_TK: torch.Tensor) -> Routing:
    gate_TK = torch.rand(expert_TK.shape, dtype=torch.double) + 0.1
    nothing = torch.zeros(len(expert_TK), E)
    return Routing(gate_TK, expert_TK, nothing, nothing)


def weights_of(activation: str) -> ExpertWeights:
    made = [torch.randn(shape, dtype=torch.double) for shape in ((E, D, F), (E, D, F), (E, F, D))]
    gate = made[0] if activation == "swiglu" else None
    return ExpertWeights(gate, made[1], made[2], cast(Activation, activation), 0.0)


@pytest.mark.parametrize("run", [gathered, every_expert])
@pytest.mark.parametrize("activation", ["swiglu", "relu2", "gelu"])
@pytest.mark.parametrize(("T", "K"), [(1, 1), (1, 3), (4, 2), (7, E)])
def test_outputs_equal_the_loop(run, activation, T, K):
    torch.manual_seed(T)
    order = torch.rand(T, E + 1).argsort(dim=1)  # E is "no expert"
    routing, weights = routing_of(order[:, :K]), weights_of(activation)
    x_TD = torch.randn(T, D, dtype=torch.double)
    torch.testing.assert_close(run(x_TD, routing, weights), loop(x_TD, routing, weights))


@pytest.mark.parametrize("run", [gathered, every_expert])
def test_tokens_without_an_expert_get_zeros(run):
    """Several slots of a token may be empty, as with the sigmoid router."""
    routing = routing_of(torch.full((3, E), E))
    x_TD = torch.randn(3, D, dtype=torch.double)
    assert not run(x_TD, routing, weights_of("swiglu")).any()


@pytest.mark.parametrize(
    ("is_on_gpu", "T", "many_expected"),
    [
        (False, E, False),
        (False, E + 1, True),
        (True, E + 1, False),
        (True, FEW_ON_GPU, False),
        (True, FEW_ON_GPU + 1, True),
    ],
)
def test_more_tokens_are_left_to_the_backend(is_on_gpu, T, many_expected, monkeypatch):
    called = []

    def many(*inputs):
        called.append(True)
        return loop(*inputs)

    monkeypatch.setattr("moebius.moe.few_tokens.loop", many)
    routing = routing_of(torch.zeros(T, 1, dtype=torch.long))
    x_TD = torch.randn(T, D, dtype=torch.double)
    weights = weights_of("swiglu")
    found = few_or_many(many, is_on_gpu)(x_TD, routing, weights)
    torch.testing.assert_close(found, loop(x_TD, routing, weights))
    assert bool(called) == many_expected


def test_a_backend_that_never_waits_stays_on_a_gpu():
    assert few_or_many(grouped, is_on_gpu=True) is grouped
