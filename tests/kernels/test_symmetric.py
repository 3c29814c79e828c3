"""Symmetric products, compared with torch's in float64."""

import pytest
import torch
from torch import Tensor

# This import comes first, because it skips the whole file where there is no triton.
from tests.kernels.interpreter import DEVICES

from moebius.kernels.symmetric import gram, polynomial  # isort: skip

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
def test_polynomials(rows, device):
    x_XRC = random_matrices(rows, rows, device)
    gram_XRR = x_XRC + x_XRC.mT
    coefficient_X3 = torch.tensor([[3.4, -4.8, 2.0], [0.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
    result = polynomial(gram_XRR, coefficient_X3.to(device))
    exact_XRR = gram_XRR.double()
    constant, linear, quadratic = coefficient_X3.to(device).double().T[..., None, None]
    eye_RR = torch.eye(rows, device=device)
    assert_close(
        result, constant * eye_RR + linear * exact_XRR + quadratic * exact_XRR @ exact_XRR
    )
    torch.testing.assert_close(result, result.mT)
