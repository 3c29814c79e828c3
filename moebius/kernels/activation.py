"""The experts' activations and their derivatives, in float32, on blocks. `moebius/model/mlp.py` has the definitions."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Between(NamedTuple):
    """What happens between an expert's products."""

    activation: str
    dropout: float
    seed: Tensor  # of dropout; one integer


@triton.jit
def activate(up, gate, ACTIVATION: tl.constexpr):
    """gate is read by SwiGLU alone."""
    if ACTIVATION == "swiglu":
        return gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "relu2":
        positive = tl.maximum(up, 0.0)
        return positive * positive
    else:
        return up * 0.5 * (1.0 + tl.erf(up * 0.7071067811865476))


@triton.jit
def activate_backward(grad, up, gate, ACTIVATION: tl.constexpr):
    """The activation itself, and the gradients of up and gate; without a gate the last is that of up again."""
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
    """A block of dropout's factors, 0 or 1 / (1 - DROPOUT), by the place in (R, F) alone: backward draws the same."""
    draw = tl.rand(tl.load(seed_ptr), row[:, None] * F + column[None, :])
    return tl.where(draw < DROPOUT, 0.0, 1.0 / (1.0 - DROPOUT))
