"""Symmetric products, compared with torch's in float64."""

import pytest
import torch
from torch import Tensor

# This import comes first, because it skips the whole file where there is no triton.
from tests.kernels.interpreter import DEVICES

from moebius.kernels.symmetric import gram, polynomial  # isort: skip
from moebius.train.muon import polynomial as reference

X = 3


def random_matrices(rows: int, columns: int, device: str) -> Tensor:
    """Return matrices in float32 on the CPU and bfloat16 on a GPU, the same every time."""
    generator = torch.Generator().manual_seed(0)
    matrices_XRC = torch.randn(X, rows, columns, generator=generator) / columns**0.5
    return matrices_XRC.to(device, torch.bfloat16 if device == "cuda" else torch.float32)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compare with float64, up to the rounding of the result."""
    error = (actual.double() - expected).norm() / expected.norm()
    assert error < (3e-3 if actual.dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (64, 200), (136, 72), (264, 40)])
def test_gram_matrices(rows, columns, device):
    x_XRC = random_matrices(rows, columns, device)
    result = gram(x_XRC)
    assert_close(result, x_XRC.double() @ x_XRC.double().mT)
    torch.testing.assert_close(result, result.mT)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [8, 72, 200])
@pytest.mark.parametrize("is_scaled", [False, True])
def test_polynomials(rows, is_scaled, device):
    x_XRC = random_matrices(rows, rows, device)
    gram_XRR = x_XRC + x_XRC.mT
    coefficients = (3.4, -4.8, 2.0)
    scale_X = torch.tensor([1.0, 0.5, 2.0], device=device) if is_scaled else None
    wide_X = scale_X if scale_X is None else scale_X.double()
    result = polynomial(gram_XRR, coefficients, scale_X)
    assert_close(result, reference(gram_XRR.double(), coefficients, wide_X))
    torch.testing.assert_close(result, result.mT)
