"""The matrix products of the forward pass: up and gate, then down.

The elementwise work after a product is its epilogue, and runs in the same kernel: the activation
after the up and gate projections, and the multiplication by the router's gate after the down
projection.
"""

import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.activation import Between, activate, keep_scale
from moebius.kernels.hopper import product as product_by_hand
from moebius.kernels.hopper import up as up_by_hand
from moebius.kernels.launch import launch
from moebius.kernels.order import Order
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


def up(
    x: Tensor,
    w_gate_EDF: Tensor | None,
    w_up_EDF: Tensor,
    order: Order,
    between: Between,
    tile: Tile,
) -> tuple[Tensor, Tensor]:
    """Return the pre-activations pre_PRF and the hidden activations hidden_RF.

    `x` is x_TD if the tile gathers, and x_RD otherwise.
    """
    if tile.epilogue == "by hand":
        assert w_gate_EDF is not None
        return up_by_hand.up(x, w_gate_EDF, w_up_EDF, order, tile)
    E, D, F = w_up_EDF.shape
    has_gate = w_gate_EDF is not None
    pre_PRF = x.new_empty(2 if has_gate else 1, len(x), F)
    hidden_RF = x.new_empty(len(x), F)
    weights = [
        block_descriptor(w, tile.k, tile.n)
        for w in (w_up_EDF, w_gate_EDF if has_gate else w_up_EDF)
    ]
    planes = [ragged_descriptor(pre_RF, tile.m, tile.n) for pre_RF in (pre_PRF[0], pre_PRF[-1])]
    launch(
        _up, (num_programs(x.device, tile),), block_descriptor(x, tile.m, tile.k), *weights,
        *planes, ragged_descriptor(hidden_RF, tile.m, tile.n), order.start, between.seed, D, F, E,
        scan_width(E), between.activation, between.dropout, tile.m, tile.n, tile.k,
        **tile.options(),
    )  # fmt: skip
    return pre_PRF, hidden_RF


def down(
    hidden_RF: Tensor, w_down_EFD: Tensor, gate_TK: Tensor, order: Order, tile: Tile
) -> Tensor:
    """Return the experts' outputs, each row multiplied by its gate in gate_TK.

    If tokens have one slot, each row is stored at the index of its token, and the result is
    out_TD. Otherwise the result is y_RD, whose rows `combine` sums.
    """
    if tile.epilogue == "by hand":
        return product_by_hand.product((hidden_RF,), (w_down_EFD,), False, gate_TK, order, tile)
    E, F, D = w_down_EFD.shape
    out = hidden_RF.new_empty(len(hidden_RF), D)
    launch(
        _down, (num_programs(out.device, tile),), block_descriptor(hidden_RF, tile.m, tile.k),
        block_descriptor(w_down_EFD, tile.k, tile.n), ragged_descriptor(out, tile.m, tile.n), out,
        gate_TK, order.assignment_R, order.start, D, F, E, scan_width(E + 1),
        order.row_TK.shape[1] == 1, tile.m, tile.n, tile.k, **tile.options(),
    )  # fmt: skip
    return out


@triton.jit
def _up(
    x, w_up, w_gate, pre_up, pre_gate, hidden, start_ptr, seed_ptr, D, F, E,
    WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute x @ w_up and, with SwiGLU, x @ w_gate for each expert's rows; then activate."""
    columns = tl.cdiv(F, BN)
    tiles = count_row_tiles(start_ptr, E, WIDTH, BM) * columns
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        expert, row, end = find_row_tile(tile // columns, start_ptr, E, WIDTH, BM)
        column = tile % columns * BN
        up_block = tl.zeros((BM, BN), tl.float32)
        gate_block = tl.zeros((BM, BN), tl.float32)
        for k in range(0, D, BK):
            x_block = x.load([row, k])
            up_block = tl.dot(
                x_block, w_up.load([expert * D + k, column]), up_block, input_precision="ieee"
            )
            if ACTIVATION == "swiglu":
                gate_block = tl.dot(
                    x_block,
                    w_gate.load([expert * D + k, column]),
                    gate_block,
                    input_precision="ieee",
                )
        dtype: tl.constexpr = hidden.dtype
        store_rows(pre_up, end, row, column, up_block.to(dtype))
        if ACTIVATION == "swiglu":
            store_rows(pre_gate, end, row, column, gate_block.to(dtype))
        hidden_block = activate(up_block, gate_block, ACTIVATION)
        if DROPOUT > 0:
            hidden_block *= keep_scale(
                seed_ptr, row + tl.arange(0, BM), column + tl.arange(0, BN), F, DROPOUT
            )
        store_rows(hidden, end, row, column, hidden_block.to(dtype))


@triton.jit
def _down(
    hidden, w_down, out, out_ptr, gate_ptr, assignment_ptr, start_ptr, D, F, E,
    WIDTH: tl.constexpr, ONE_SLOT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute hidden @ w_down for each expert's rows, times the router's gate of each row."""
    columns = tl.cdiv(D, BN)
    # With one slot no `combine` follows, so the tokens without an expert (the rows of the id E)
    # are written here too. Their sum has no terms, which leaves zeros.
    num_ids = E + 1 if ONE_SLOT else E
    tiles = count_row_tiles(start_ptr, num_ids, WIDTH, BM) * columns
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        expert, row, end = find_row_tile(tile // columns, start_ptr, num_ids, WIDTH, BM)
        column = tile % columns * BN
        y_block = tl.zeros((BM, BN), tl.float32)
        for k in range(0, tl.where(expert < E, F, 0), BK):
            y_block = tl.dot(
                hidden.load([row, k]),
                w_down.load([expert * F + k, column]),
                y_block,
                input_precision="ieee",
            )
        rows = row + tl.arange(0, BM)
        assignment = tl.load(assignment_ptr + rows, mask=rows < end, other=0)
        y_block *= tl.load(gate_ptr + assignment)[:, None].to(tl.float32)
        if ONE_SLOT:
            scatter_rows(out_ptr, assignment, rows < end, column, y_block, D, BN)
        else:
            store_rows(out, end, row, column, y_block.to(out.dtype))
