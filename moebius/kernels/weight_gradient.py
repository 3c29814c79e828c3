# Outside kernels the language's functions raise, so that nothing seems to follow them.
# pyright: reportGeneralTypeIssues=false
"""The weights' gradients: for each expert the products over its own rows, all three matrices in one kernel.

An expert's tiles take as long as it has rows, so programs draw the next tile from a counter when they are free, and with all
matrices in one kernel they wait for the last tile once. Whoever computes a tile computes all of it: the same bits each time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import launch
from moebius.kernels.order import Order
from moebius.kernels.tiles import Tile, load_rows, num_programs, ragged_descriptor, stack_descriptor


def weight_gradients(
    x_RD: Tensor, pre_grad_PRF: Tensor, hidden_RF: Tensor, grad_RD: Tensor, order: Order, num_experts: int, tile: Tile
) -> tuple[Tensor, Tensor | None, Tensor]:
    """w_up's x.T @ pre_grad and w_gate's, if there are two planes, (E, D, F), and w_down's hidden.T @ grad, (E, F, D).

    Each tile has the same rows, of D, and twice n columns, of F: n of up and n of gate, or two neighbours of one matrix.
    """
    E, D, (P, _, F) = num_experts, x_RD.shape[1], pre_grad_PRF.shape
    w_up, w_gate, w_down = x_RD.new_empty(E, D, F), x_RD.new_empty(E, D, F) if P == 2 else None, x_RD.new_empty(E, F, D)
    next_tile = torch.zeros(1, dtype=torch.int32, device=x_RD.device)
    launch(
        _weight_gradients, (num_programs(x_RD.device, tile),),
        *(ragged_descriptor(narrow_RD, tile.k, tile.m) for narrow_RD in (x_RD, grad_RD)),
        *(ragged_descriptor(wide_RF, tile.k, tile.n) for wide_RF in (pre_grad_PRF[0], pre_grad_PRF[-1], hidden_RF)),
        *(stack_descriptor(w, tile.m, tile.n) for w in (w_up, w_up if w_gate is None else w_gate)),
        stack_descriptor(w_down, tile.n, tile.m), order.start, next_tile, D, F, E, P == 2, tile.m, tile.n, tile.k,
        **tile.options(),
    )  # fmt: skip
    return w_up, w_gate, w_down


@triton.jit
def _weight_gradients(
    x, grad, up_grad, gate_grad, hidden, w_up, w_gate, w_down, start_ptr, next_ptr, D, F, E,
    HAS_GATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = tl.cdiv(D, BM)
    pair_tiles = rows * tl.cdiv(F, 2 * BN)
    up_tiles = rows * tl.cdiv(F, BN) if HAS_GATE else pair_tiles
    tile = tl.atomic_add(next_ptr, 1, sem="relaxed")
    while tile < E * (up_tiles + pair_tiles):
        following = tl.atomic_add(next_ptr, 1, sem="relaxed")
        is_up = tile < E * up_tiles
        own = tl.where(is_up, tile, tile - E * up_tiles)
        expert = own // tl.where(is_up, up_tiles, pair_tiles)
        own = own % tl.where(is_up, up_tiles, pair_tiles)
        m, n = own % rows * BM, own // rows  # neighbours share the columns, the wider operand
        start, end = tl.load(start_ptr + expert), tl.load(start_ptr + expert + 1)
        if not is_up:
            left, right = _products(grad, hidden, hidden, start, end, m, 2 * n * BN, (2 * n + 1) * BN, BM, BN, BK)
            w_down.store([expert, 2 * n * BN, m], left.to(w_down.dtype).T.reshape(1, BN, BM))
            w_down.store([expert, (2 * n + 1) * BN, m], right.to(w_down.dtype).T.reshape(1, BN, BM))
        elif HAS_GATE:
            left, right = _products(x, up_grad, gate_grad, start, end, m, n * BN, n * BN, BM, BN, BK)
            w_up.store([expert, m, n * BN], left.to(w_up.dtype).reshape(1, BM, BN))
            w_gate.store([expert, m, n * BN], right.to(w_up.dtype).reshape(1, BM, BN))
        else:
            left, right = _products(x, up_grad, up_grad, start, end, m, 2 * n * BN, (2 * n + 1) * BN, BM, BN, BK)
            w_up.store([expert, m, 2 * n * BN], left.to(w_up.dtype).reshape(1, BM, BN))
            w_up.store([expert, m, (2 * n + 1) * BN], right.to(w_up.dtype).reshape(1, BM, BN))
        tile = following


@triton.jit
def _products(a, left, right, start, end, m, n_left, n_right, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """a.T @ left and a.T @ right over an expert's rows; nothing is read from the rows of the next."""
    left_block = tl.zeros((BM, BN), tl.float32)
    right_block = tl.zeros((BM, BN), tl.float32)
    for row in range(start, end, BK):
        a_block = load_rows(a, end, row, m).T
        left_block = tl.dot(a_block, load_rows(left, end, row, n_left), left_block, input_precision="ieee")
        right_block = tl.dot(a_block, load_rows(right, end, row, n_right), right_block, input_precision="ieee")
    return left_block, right_block
