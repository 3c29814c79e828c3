# Triton's functions raise outside of a kernel, so pyright believes that they never return.
# pyright: reportGeneralTypeIssues=false
"""The gradients of the weights: for each expert, matrix products that sum over its rows.

The more rows an expert has, the longer its tiles take. Idle programs therefore take their next
tile from a shared counter, and all matrices share one kernel, so that programs wait for the last
tile only once. A single program computes all of a tile, so the bits are the same every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.hopper import weight_gradient as by_hand
from moebius.kernels.launch import launch
from moebius.kernels.order import Order
from moebius.kernels.tiles import (
    Tile,
    load_rows,
    num_programs,
    ragged_descriptor,
    stack_descriptor,
)


def weight_gradients(
    x: Tensor,
    pre_grad_PRF: Tensor,
    hidden_RF: Tensor,
    grad: Tensor,
    order: Order,
    num_experts: int,
    tile: Tile,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradients of w_up (E, D, F), w_gate (E, D, F) and w_down (E, F, D).

    The first two are x.T @ pre_grad; that of w_gate is None unless `pre_grad_PRF` has two planes.
    The third is hidden.T @ grad, where `hidden_RF` is already multiplied by the router's gates.
    `x` and `grad` are x_TD and grad_TD if the tile gathers, and x_RD and grad_RD otherwise.

    A tile covers m of the D dimensions and 2 * n of the columns of F. For w_up and w_gate together
    these are the same n columns of both; for one matrix alone they are 2 * n adjacent columns.
    """
    if tile.epilogue == "by hand":
        return by_hand.weight_gradients(x, pre_grad_PRF, hidden_RF, grad, order, num_experts, tile)
    E, D, (P, _, F) = num_experts, x.shape[1], pre_grad_PRF.shape
    w_up_grad = x.new_empty(E, D, F)
    w_gate_grad = x.new_empty(E, D, F) if P == 2 else None
    w_down_grad = x.new_empty(E, F, D)
    next_tile = torch.zeros(1, dtype=torch.int32, device=x.device)
    narrow = [ragged_descriptor(rows_RD, tile.k, tile.m) for rows_RD in (x, grad)]
    wide = [
        ragged_descriptor(rows_RF, tile.k, tile.n)
        for rows_RF in (pre_grad_PRF[0], pre_grad_PRF[-1], hidden_RF)
    ]
    outputs = [
        stack_descriptor(w_up_grad, tile.m, tile.n),
        stack_descriptor(w_up_grad if w_gate_grad is None else w_gate_grad, tile.m, tile.n),
        stack_descriptor(w_down_grad, tile.n, tile.m),
    ]
    launch(
        _weight_gradients, (num_programs(x.device, tile),), *narrow, *wide, *outputs,
        order.start, next_tile, D, F, E, P == 2, tile.m, tile.n, tile.k, **tile.options(),
    )  # fmt: skip
    return w_up_grad, w_gate_grad, w_down_grad


@triton.jit
def _weight_gradients(
    x, grad, up_grad, gate_grad, hidden, w_up, w_gate, w_down, start_ptr, next_ptr, D, F, E,
    HAS_GATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute tiles of the gradients until none are left: w_up and w_gate first, then w_down.

    A tile of w_down is computed transposed, as grad.T @ hidden, and transposed when it is stored.
    """
    rows = tl.cdiv(D, BM)
    pair_tiles = rows * tl.cdiv(F, 2 * BN)
    up_tiles = rows * tl.cdiv(F, BN) if HAS_GATE else pair_tiles
    tile = tl.atomic_add(next_ptr, 1, sem="relaxed")
    while tile < E * (up_tiles + pair_tiles):
        following = tl.atomic_add(next_ptr, 1, sem="relaxed")
        is_up = tile < E * up_tiles
        index = tl.where(is_up, tile, tile - E * up_tiles)
        expert = index // tl.where(is_up, up_tiles, pair_tiles)
        index = index % tl.where(is_up, up_tiles, pair_tiles)
        # Consecutive tiles share their columns, because the columns come from the wider operand,
        # which is then more likely to be in the cache.
        m, n = index % rows * BM, index // rows
        start, end = tl.load(start_ptr + expert), tl.load(start_ptr + expert + 1)
        if not is_up:
            left, right = _products(
                grad, hidden, hidden, start, end, m, 2 * n * BN, (2 * n + 1) * BN, BM, BN, BK
            )
            w_down.store([expert, 2 * n * BN, m], left.to(w_down.dtype).T.reshape(1, BN, BM))
            w_down.store(
                [expert, (2 * n + 1) * BN, m], right.to(w_down.dtype).T.reshape(1, BN, BM)
            )
        elif HAS_GATE:
            left, right = _products(
                x, up_grad, gate_grad, start, end, m, n * BN, n * BN, BM, BN, BK
            )
            w_up.store([expert, m, n * BN], left.to(w_up.dtype).reshape(1, BM, BN))
            w_gate.store([expert, m, n * BN], right.to(w_up.dtype).reshape(1, BM, BN))
        else:
            left, right = _products(
                x, up_grad, up_grad, start, end, m, 2 * n * BN, (2 * n + 1) * BN, BM, BN, BK
            )
            w_up.store([expert, m, 2 * n * BN], left.to(w_up.dtype).reshape(1, BM, BN))
            w_up.store([expert, m, (2 * n + 1) * BN], right.to(w_up.dtype).reshape(1, BM, BN))
        tile = following


@triton.jit
def _products(
    a, left, right, start, end, m, n_left, n_right,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return the tiles of a.T @ left and a.T @ right at row m and columns n_left and n_right.

    The sums run over the expert's rows, from `start` to `end`; rows of the next expert are not
    read.
    """
    left_block = tl.zeros((BM, BN), tl.float32)
    right_block = tl.zeros((BM, BN), tl.float32)
    for row in range(start, end, BK):
        a_block = load_rows(a, end, row, m).T
        left_block = tl.dot(
            a_block, load_rows(left, end, row, n_left), left_block, input_precision="ieee"
        )
        right_block = tl.dot(
            a_block, load_rows(right, end, row, n_right), right_block, input_precision="ieee"
        )
    return left_block, right_block
