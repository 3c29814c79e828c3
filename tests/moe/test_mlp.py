"""The dense MLP, compared with its formulas."""

import pytest
import torch

from moebius.moe.mlp import MLP

D, F = 24, 40


@pytest.mark.parametrize("activation", ["swiglu", "relu2", "gelu"])
def test_the_formula(activation):
    mlp = MLP(D, F, activation).double()
    x = torch.randn(2, 7, D, dtype=torch.float64)
    up = x @ mlp.up.weight.T
    if activation == "swiglu":
        assert mlp.gate is not None
        gate = x @ mlp.gate.weight.T
        hidden = gate / (1 + torch.exp(-gate)) * up
    elif activation == "relu2":
        hidden = up.clamp(min=0) ** 2
    else:
        hidden = up * 0.5 * (1 + torch.erf(up / 2**0.5))
    torch.testing.assert_close(mlp(x), hidden @ mlp.down.weight.T)
    assert len(list(mlp.parameters())) == (3 if activation == "swiglu" else 2)
