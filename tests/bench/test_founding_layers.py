"""Tests that the founding document's layers compute the same results as Moebius's layers."""

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.model.attention import attend_native
from moebius.moe.experts import ExpertWeights, loop
from moebius.moe.router import softmax_topk

T, D, F, E = 37, 24, 40, 5
B, S, H, N, G = 2, 19, 8, 6, 3


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def doubles(*shape: int) -> Tensor:
    """Return random numbers in float64."""
    return torch.randn(shape, dtype=torch.float64)


def test_repeated_heads_are_native_ones(script):
    q, k, v = (doubles(B, heads, S, H) for heads in (N, G, G))
    repeated = script("founding_layers").attend_repeated(q, k, v, None)
    torch.testing.assert_close(repeated, attend_native(q, k, v, None))


@pytest.mark.parametrize("k", [1, 3])
def test_token_by_token_is_loop(script, k):
    routing = softmax_topk(doubles(T, E), k, renormalize=True)
    matrices = [doubles(*shape) for shape in ((E, D, F), (E, D, F), (E, F, D))]
    weights = ExpertWeights(*matrices, activation="swiglu", dropout=0.0)
    x_TD = doubles(T, D)
    out_TD = script("founding_layers").token_by_token(x_TD, routing, weights)
    torch.testing.assert_close(out_TD, loop(x_TD, routing, weights))


def test_every_way_collects_the_same_rows(script):
    layers = script("founding_layers")
    x_TD, expert_T = torch.randn(T, D), torch.randint(E - 1, (T,))
    expected = layers.by_index(x_TD, expert_T, E)
    assert expected.shape == (T, D)
    assert torch.equal(layers.by_mask(x_TD, expert_T, E), expected)
    assert torch.equal(layers.by_sorting(x_TD, expert_T, E), expected)


def test_padding_fills_up_each_experts_rows(script):
    padded_rows = script("founding_layers").padded_rows
    assert padded_rows(37, 1) == 11 and padded_rows(48, 1) == 0
    assert 0 < padded_rows(1000, 64) < 15 * 64
    assert (1000 + padded_rows(1000, 64)) % 16 == 0


def test_every_backend_of_the_device_is_timed(script):
    # FP8 needs a width that is a multiple of 16.
    model = ModelConfig(dim=32, num_layers=1, num_heads=2, num_kv_heads=1, num_experts=E)
    times = script("founding_layers").experts_times(model, T, torch.device("cpu"), rounds=2)
    assert next(iter(times)).startswith("token by token, 1 times what 64 took")
    assert list(times)[1:3] == ["loop, one GEMM per expert", "grouped"]
    assert all(len(layer.both.seconds) == 2 for layer in times.values())
