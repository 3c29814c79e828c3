"""The elementwise halves of Muon's step, compared with their readable reference."""

import pytest
import torch
from torch import Tensor

from moebius.train import muon

# This import comes first, because it skips the whole file where there is no triton.
from tests.kernels.interpreter import DEVICES

from moebius.kernels import momentum as kernels  # isort: skip

X, R, C = 3, 40, 72
RATE = 0.95


def random_matrices(seed: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(X, R, C, generator=generator).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(X, R, C), (X, C, R)], ids=["as it is", "transposed"])
def test_momentum_and_direction(shape, device):
    gradient, momentum = random_matrices(0, device), random_matrices(1, device)
    expected_momentum, taken = momentum.clone(), torch.ones((), device=device)
    out, expected = (gradient.new_full(shape, torch.nan) for _ in range(2))
    kernels.advance(gradient, momentum, out, RATE, taken)
    muon.advance(gradient, expected_momentum, expected, RATE, taken)
    torch.testing.assert_close(momentum, expected_momentum, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_is_not_taken_changes_nothing(device):
    gradient, momentum = random_matrices(0, device), random_matrices(1, device)
    gradient[1, 2, 3] = torch.nan
    gradient[0, 0, 0] = torch.inf
    before, not_taken = momentum.clone(), torch.zeros((), device=device)
    out = torch.empty_like(gradient)
    kernels.advance(gradient, momentum, out, RATE, not_taken)
    assert torch.equal(momentum, before) and out.isfinite().all()
    parameter, untouched = random_matrices(2, device), random_matrices(2, device)
    kernels.subtract(parameter, out, 1 - 0.1 * not_taken, 0.3 * not_taken)
    assert torch.equal(parameter, untouched)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_decay_and_update(is_transposed, device):
    parameter, update = random_matrices(0, device), random_matrices(1, device)
    update = update.mT.contiguous() if is_transposed else update
    expected = parameter.clone()
    kept, scale = (torch.tensor(number, device=device) for number in (0.9, 0.3))
    kernels.subtract(parameter, update, kept, scale)
    muon.subtract(expected, update, kept, scale)
    torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)
