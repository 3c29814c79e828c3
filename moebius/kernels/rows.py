# Triton's functions raise outside of a kernel, so pyright believes that they never return.
# pyright: reportGeneralTypeIssues=false
"""Move rows between the order of the tokens and the order of the experts.

Sums over a token's slots are computed in the order of the slots and without atomics, so their bits
are the same every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import cdiv, launch
from moebius.kernels.order import Order

COLUMNS, ROWS = 128, 32  # block of one program in `_gather` and `_combine`
AT_ONCE = 8  # slots whose rows `_combine` loads at the same time
ASSIGNMENTS = 256  # block of one program in `_sum_gate_gradients`


def gather(x_TD: Tensor, order: Order) -> Tensor:
    """Return x_RD, which holds the vector of each row's token."""
    (R,), D, num_slots = order.assignment_R.shape, x_TD.shape[1], order.row_TK.shape[1]
    x_RD = x_TD.new_empty(R, D)
    grid = (cdiv(R, ROWS), cdiv(D, COLUMNS))
    launch(_gather, grid, x_TD, x_RD, order.assignment_R, R, D, num_slots, ROWS, COLUMNS)
    return x_RD


def combine(y_RD: Tensor, order: Order, num_experts: int) -> Tensor:
    """Return out_TD: for each token the sum of the rows of its slots that have an expert.

    The sum is computed in float32 and rounded to the dtype of `y_RD`.
    """
    T, num_slots = order.row_TK.shape
    D = y_RD.shape[1]
    out_TD = y_RD.new_empty(T, D)
    grid = (cdiv(T, ROWS), cdiv(D, COLUMNS))
    launch(
        _combine, grid, y_RD, out_TD, order.row_TK, order.start,
        num_experts, T, D, num_slots, ROWS, COLUMNS, min(num_slots, AT_ONCE),
    )  # fmt: skip
    return out_TD


def sum_gate_gradients(partial_NR: Tensor, order: Order, num_experts: int) -> Tensor:
    """Return the float32 gradient of gate_TK; it is zero for assignments without an expert.

    Entry (n, r) of `partial_NR` is what tile n of the columns contributes to row r's gradient.
    """
    gate_grad_TK = torch.empty(order.row_TK.shape, dtype=torch.float32, device=partial_NR.device)
    N, R = partial_NR.shape
    launch(
        _sum_gate_gradients, (cdiv(R, ASSIGNMENTS),), partial_NR, gate_grad_TK, order.row_TK,
        order.start, num_experts, N, R, ASSIGNMENTS,
    )  # fmt: skip
    return gate_grad_TK


@triton.jit
def _gather(x_ptr, out_ptr, assignment_ptr, R, D, num_slots, BR: tl.constexpr, BD: tl.constexpr):
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = (row < R)[:, None] & (column < D)[None, :]
    token = tl.load(assignment_ptr + row, mask=row < R, other=0) // num_slots
    block = tl.load(x_ptr + token[:, None].to(tl.int64) * D + column[None, :], mask=inside)
    tl.store(out_ptr + row[:, None].to(tl.int64) * D + column[None, :], block, mask=inside)


@triton.jit
def _combine(
    y_ptr, out_ptr, row_ptr, start_ptr, E, T, D, num_slots,
    BT: tl.constexpr, BD: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    taken = tl.load(start_ptr + E)
    total = tl.zeros((BT, BD), tl.float32)
    for first in range(0, num_slots, AT_ONCE):
        for ahead in tl.static_range(AT_ONCE):
            slot = first + ahead
            exists = (token < T) & (slot < num_slots)
            row = tl.load(row_ptr + token * num_slots + slot, mask=exists, other=taken)
            wanted = (row < taken)[:, None] & (column < D)[None, :]
            total += tl.load(
                y_ptr + row[:, None].to(tl.int64) * D + column[None, :], mask=wanted, other=0.0
            )
    place = out_ptr + token[:, None].to(tl.int64) * D + column[None, :]
    tl.store(
        place,
        total.to(out_ptr.dtype.element_ty),
        mask=(token < T)[:, None] & (column < D)[None, :],
    )


@triton.jit
def _sum_gate_gradients(partial_ptr, out_ptr, row_ptr, start_ptr, E, N, R, SIZE: tl.constexpr):
    assignment = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    row = tl.load(row_ptr + assignment, mask=assignment < R, other=0)
    wanted = (assignment < R) & (row < tl.load(start_ptr + E))
    total = tl.zeros((SIZE,), tl.float32)
    for tile in range(N):
        total += tl.load(partial_ptr + tile * tl.cast(R, tl.int64) + row, mask=wanted, other=0.0)
    tl.store(out_ptr + assignment, total, mask=assignment < R)
