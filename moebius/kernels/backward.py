"""The matrix products of the backward pass that give the gradients of activations.

The first product is the backward pass of the down projection, which the derivative of the
activation follows. The second is the backward pass of the up and gate projections. The hidden
activations are recomputed from the pre-activations, and the output of the down projection is never
needed: the gradient of a router's gate is the dot product of the row's hidden activations with
their gradient (SonicMoE, 2025).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.activation import Between, activate_backward, keep_scale
from moebius.kernels.activation_backward import activation_backward
from moebius.kernels.hopper import down_backward as down_backward_by_hand
from moebius.kernels.hopper import product as product_by_hand
from moebius.kernels.launch import cdiv, launch
from moebius.kernels.order import Order
from moebius.kernels.rows import sum_gate_gradients
from moebius.kernels.tiles import (
    Tile,
    block_descriptor,
    count_row_tiles,
    find_row_tile,
    num_programs,
    ragged_descriptor,
    scan_width,
    scatter_rows,
    store_rows,
)


def down_backward(
    grad: Tensor,
    w_down_EFD: Tensor,
    pre_PRF: Tensor,
    gate_TK: Tensor,
    order: Order,
    between: Between,
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of pre_PRF, the gated hidden activations, and the gradient of gate_TK.

    `grad` is grad_TD, the gradient of the layer's output, if the tile gathers; otherwise it is
    grad_RD, which holds for each row the gradient of its token's output. The second result, the
    hidden activations times the router's gates, is what the gradient of w_down needs.
    `tile.epilogue` says which kernels run.
    """
    if tile.epilogue == "by hand":
        return down_backward_by_hand.down_backward(
            grad, w_down_EFD, pre_PRF, gate_TK, order, tile.gathers
        )
    run = _down_backward_split if tile.epilogue == "split" else _down_backward_fused
    return run(grad, w_down_EFD, pre_PRF, gate_TK, order, between, tile)


def up_backward(
    pre_grad_PRF: Tensor, w_gate_EDF: Tensor | None, w_up_EDF: Tensor, order: Order, tile: Tile
) -> Tensor:
    """Return the gradient of x: x_grad_TD if tokens have one slot, else rows for `combine`."""
    matrices = (w_up_EDF,) if w_gate_EDF is None else (w_up_EDF, w_gate_EDF)
    if tile.epilogue == "by hand":
        return product_by_hand.product(tuple(pre_grad_PRF), matrices, True, None, order, tile)
    return _times_transposed(
        tuple(pre_grad_PRF), matrices, order, order.row_TK.shape[1] == 1, tile
    )


def _down_backward_fused(
    grad_RD: Tensor,
    w_down_EFD: Tensor,
    pre_PRF: Tensor,
    gate_TK: Tensor,
    order: Order,
    between: Between,
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the work of `down_backward` in one kernel; a second one sums the router's gradient."""
    E, F, D = w_down_EFD.shape
    pre_grad_PRF, hidden_RF = torch.empty_like(pre_PRF), torch.empty_like(pre_PRF[0])
    partial_NR = torch.empty(
        cdiv(F, tile.n), len(grad_RD), dtype=torch.float32, device=grad_RD.device
    )
    inputs = [block_descriptor(pre_PRF[plane], tile.m, tile.n) for plane in (0, -1)]
    outputs = [
        ragged_descriptor(output_RF, tile.m, tile.n)
        for output_RF in (pre_grad_PRF[0], pre_grad_PRF[-1], hidden_RF)
    ]
    launch(
        _down_backward, (num_programs(grad_RD.device, tile),),
        block_descriptor(grad_RD, tile.m, tile.k), block_descriptor(w_down_EFD, tile.n, tile.k),
        *inputs, *outputs, gate_TK, partial_NR, order.assignment_R, order.start, between.seed,
        len(grad_RD), D, F, E, scan_width(E), between.activation, between.dropout,
        tile.m, tile.n, tile.k, **tile.options(),
    )  # fmt: skip
    return pre_grad_PRF, hidden_RF, sum_gate_gradients(partial_NR, order, E)


def _down_backward_split(
    grad_RD: Tensor,
    w_down_EFD: Tensor,
    pre_PRF: Tensor,
    gate_TK: Tensor,
    order: Order,
    between: Between,
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the work of `down_backward` in two kernels: the product, then the derivative."""
    hidden_grad_RF = _times_transposed((grad_RD,), (w_down_EFD,), order, False, tile)
    pre_grad_PRF, gate_grad_TK = activation_backward(
        hidden_grad_RF, pre_PRF, gate_TK, order, len(w_down_EFD), between
    )
    hidden_RF = hidden_grad_RF  # overwritten by activation_backward
    return pre_grad_PRF, hidden_RF, gate_grad_TK


def _times_transposed(
    rows: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    order: Order,
    to_tokens: bool,
    tile: Tile,
) -> Tensor:
    """Return each row times its expert's transposed matrix, summed over one or two such pairs.

    Each of `rows` has shape (R, K) and each of `weights` has shape (E, N, K). Here K is the
    dimension that the product sums over, and the result has shape (R, N). `to_tokens`, which
    requires tokens with one slot, stores each row at the index of its token.
    """
    E, N, K = weights[0].shape
    out = rows[0].new_empty(len(rows[0]), N)
    launch(
        _product, (num_programs(out.device, tile),),
        *(block_descriptor(rows[pair], tile.m, tile.k) for pair in (0, -1)),
        *(block_descriptor(weights[pair], tile.n, tile.k) for pair in (0, -1)),
        ragged_descriptor(out, tile.m, tile.n), out, order.assignment_R, order.start, N, K, E,
        scan_width(E + 1), len(rows) == 2, to_tokens, tile.m, tile.n, tile.k, **tile.options(),
    )  # fmt: skip
    return out


@triton.jit
def _down_backward(
    grad, w_down, pre_up, pre_gate, up_grad, gate_grad, hidden, gate_ptr, partial_ptr,
    assignment_ptr, start_ptr, seed_ptr, R, D, F, E,
    WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute grad @ w_down.T for each expert's rows, then differentiate the activation.

    Each tile also sums over its columns, which gives its part of the router gates' gradient.
    """
    columns = tl.cdiv(F, BN)
    tiles = count_row_tiles(start_ptr, E, WIDTH, BM) * columns
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        expert, row, end = find_row_tile(tile // columns, start_ptr, E, WIDTH, BM)
        column = tile % columns * BN
        rows, column_range = row + tl.arange(0, BM), column + tl.arange(0, BN)
        assignment = tl.load(assignment_ptr + rows, mask=rows < end, other=0)
        scale = tl.load(gate_ptr + assignment).to(tl.float32)[:, None]
        block = tl.zeros((BM, BN), tl.float32)
        for k in range(0, D, BK):
            block = tl.dot(
                grad.load([row, k]),
                w_down.load([expert * F + column, k]).T,
                block,
                input_precision="ieee",
            )
        if DROPOUT > 0:
            keep = keep_scale(seed_ptr, rows, column_range, F, DROPOUT)
            block *= keep
        up = pre_up.load([row, column]).to(tl.float32)
        gate = pre_gate.load([row, column]).to(tl.float32) if ACTIVATION == "swiglu" else up
        activation, up_block, gate_block = activate_backward(block, up, gate, ACTIVATION)
        # Columns from F on read as zero, and every activation of zero is zero.
        part = tl.sum(block * activation, axis=1)
        tl.store(partial_ptr + tile % columns * tl.cast(R, tl.int64) + rows, part, mask=rows < end)
        dtype: tl.constexpr = hidden.dtype
        store_rows(up_grad, end, row, column, (up_block * scale).to(dtype))
        if ACTIVATION == "swiglu":
            store_rows(gate_grad, end, row, column, (gate_block * scale).to(dtype))
        if DROPOUT > 0:
            activation *= keep
        store_rows(hidden, end, row, column, (activation * scale).to(dtype))


@triton.jit
def _product(
    left, left2, right, right2, out, out_ptr, assignment_ptr, start_ptr, N, K, E,
    WIDTH: tl.constexpr, TWO: tl.constexpr, TO_TOKENS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute left @ right.T for each expert's rows; with TWO, also add left2 @ right2.T."""
    columns = tl.cdiv(N, BN)
    num_ids = E + 1 if TO_TOKENS else E
    tiles = count_row_tiles(start_ptr, num_ids, WIDTH, BM) * columns
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        expert, row, end = find_row_tile(tile // columns, start_ptr, num_ids, WIDTH, BM)
        column = tile % columns * BN
        block = tl.zeros((BM, BN), tl.float32)
        steps = tl.where(expert < E, K, 0)
        for k in range(0, steps, BK):
            block = tl.dot(
                left.load([row, k]),
                right.load([expert * N + column, k]).T,
                block,
                input_precision="ieee",
            )
        # The second pair has a loop of its own. With both products in one loop, there would be no
        # work left to do while one product waits for the other's sum.
        if TWO:
            for k in range(0, steps, BK):
                block = tl.dot(
                    left2.load([row, k]),
                    right2.load([expert * N + column, k]).T,
                    block,
                    input_precision="ieee",
                )
        if TO_TOKENS:
            rows = row + tl.arange(0, BM)
            token = tl.load(assignment_ptr + rows, mask=rows < end, other=0)
            scatter_rows(out_ptr, token, rows < end, column, block, N, BN)
        else:
            store_rows(out, end, row, column, block.to(out.dtype))
