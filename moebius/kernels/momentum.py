# Triton's functions raise outside of a kernel, so pyright believes that they never return.
# pyright: reportGeneralTypeIssues=false
"""The elementwise halves of Muon's step, each in one pass over the parameters.

An update of Muon is bound by the bytes that it moves, apart from its products. The readable
reference of both functions is in moebius/train/muon.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import cdiv, launch

ROWS, COLUMNS, WARPS = 32, 64, 4  # of the block that one program reads


def advance(
    gradient_XRC: Tensor, momentum_XRC: Tensor, out: Tensor, rate: float, is_taken: Tensor
) -> None:
    """Move the momentum towards the gradient, in place, and store Nesterov's direction in `out`.

    momentum becomes rate * momentum + (1 - rate) * gradient, and the direction is the same mean of
    gradient and new momentum. `out` has the shape (X, R, C) or, if the direction is wanted
    transposed, (X, C, R). Nothing changes if the scalar `is_taken` is 0; the gradient may then be
    NaN.
    """
    X, R, C = gradient_XRC.shape
    launch(
        _advance, (X, cdiv(R, ROWS), cdiv(C, COLUMNS)), gradient_XRC, momentum_XRC, out, is_taken,
        R, C, rate, out.shape[1] != R, ROWS, COLUMNS, num_warps=WARPS,
    )  # fmt: skip


def subtract(parameter_XRC: Tensor, update: Tensor, kept: Tensor, scale: Tensor) -> None:
    """Set the parameter to kept * parameter - scale * update, in place.

    `update` has the shape (X, R, C) or, transposed, (X, C, R); kept and scale are scalars on the
    device.
    """
    X, R, C = parameter_XRC.shape
    launch(
        _subtract, (X, cdiv(R, ROWS), cdiv(C, COLUMNS)), parameter_XRC, update, kept, scale,
        R, C, update.shape[1] != R, ROWS, COLUMNS, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def _advance(
    gradient_ptr, momentum_ptr, out_ptr, taken_ptr, R, C, rate,
    TRANSPOSES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    place, out_place, inside = _places(R, C, TRANSPOSES, BR, BC)
    taken = tl.load(taken_ptr)
    gradient = tl.load(gradient_ptr + place, mask=inside, other=0.0)
    gradient = tl.where(taken > 0, gradient, 0.0)  # 0 times NaN is NaN
    momentum = tl.load(momentum_ptr + place, mask=inside, other=0.0)
    momentum += (1 - rate) * taken * (gradient - momentum)
    tl.store(momentum_ptr + place, momentum, mask=inside)
    direction = (gradient + rate * (momentum - gradient)).to(out_ptr.dtype.element_ty)
    if TRANSPOSES:
        tl.store(out_ptr + out_place, direction.T, mask=inside.T)
    else:
        tl.store(out_ptr + out_place, direction, mask=inside)


@triton.jit
def _subtract(
    parameter_ptr, update_ptr, kept_ptr, scale_ptr, R, C,
    TRANSPOSES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    place, update_place, inside = _places(R, C, TRANSPOSES, BR, BC)
    if TRANSPOSES:
        update = tl.load(update_ptr + update_place, mask=inside.T, other=0.0).T
    else:
        update = tl.load(update_ptr + update_place, mask=inside, other=0.0)
    parameter = tl.load(parameter_ptr + place, mask=inside, other=0.0)
    parameter = tl.load(kept_ptr) * parameter - tl.load(scale_ptr) * update.to(tl.float32)
    tl.store(parameter_ptr + place, parameter, mask=inside)


@triton.jit
def _places(R, C, TRANSPOSES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """Return a block's places in a stack of matrices (R, C) and in the other, and which exist.

    The other stack has the same shape, or its matrices are transposed.
    """
    rows = tl.program_id(1) * BR + tl.arange(0, BR)
    columns = tl.program_id(2) * BC + tl.arange(0, BC)
    first = tl.program_id(0).to(tl.int64) * R * C
    place = first + rows[:, None] * C + columns[None, :]
    other_place = first + columns[:, None] * R + rows[None, :] if TRANSPOSES else place
    return place, other_place, (rows < R)[:, None] & (columns < C)[None, :]
