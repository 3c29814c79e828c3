"""The experts' activations and their derivatives, computed in float32 on blocks inside kernels.

moebius/moe/mlp.py defines the same activations in PyTorch.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Between(NamedTuple):
    """The work between an expert's up and down projections: an activation, then dropout."""

    activation: str
    """Either "swiglu", "relu2" or "gelu"."""

    dropout: float
    """Probability that a hidden activation is set to zero."""

    seed: Tensor
    """Tensor of integers whose first element is the seed of dropout; not read if dropout is 0."""


@triton.jit
def activate(up, gate, ACTIVATION: tl.constexpr):
    """Return the activation of a block of pre-activations; only SwiGLU reads `gate`."""
    if ACTIVATION == "swiglu":
        return gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "relu2":
        positive = tl.maximum(up, 0.0)
        return positive * positive
    else:
        return up * 0.5 * (1.0 + tl.erf(up * 0.7071067811865476))


@triton.jit
def activate_backward(grad, up, gate, ACTIVATION: tl.constexpr):
    """Return the activation, the gradient of `up` and the gradient of SwiGLU's `gate`.

    The other activations have no gate, and return the gradient of `up` in place of the third.
    """
    if ACTIVATION == "swiglu":
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        return silu * up, grad * silu, grad * up * (sigmoid + silu * (1.0 - sigmoid))
    elif ACTIVATION == "relu2":
        positive = tl.maximum(up, 0.0)
        up_grad = grad * 2.0 * positive
        return positive * positive, up_grad, up_grad
    else:
        normal = 0.5 * (1.0 + tl.erf(up * 0.7071067811865476))
        up_grad = grad * (normal + up * 0.3989422804014327 * tl.exp(-0.5 * up * up))
        return up * normal, up_grad, up_grad


@triton.jit
def keep_scale(seed_ptr, row, column, F, DROPOUT: tl.constexpr):
    """Return the block of dropout's factors, each 0 or 1 / (1 - DROPOUT).

    A factor depends only on the seed and its position in (R, F), so the backward pass draws the
    same factors.
    """
    draw = tl.rand(tl.load(seed_ptr), row[:, None] * F + column[None, :])
    return tl.where(draw < DROPOUT, 0.0, 1.0 / (1.0 - DROPOUT))
