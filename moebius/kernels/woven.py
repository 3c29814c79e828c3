"""A product and the pass over its rows in one kernel, whose programs do the one or the other.

A product keeps the tensor cores busy, a pass the memory: some multiprocessors doing each takes less time than all doing one
after the other, and what a pass reads was written so lately that the cache still has it. Programs draw the next piece of
either from a counter. Passes stay `lag` tiles of rows behind, more pieces than there are programs, so that what a pass waits
for has mostly been written; and it has always been drawn before, so that somebody is at it, or has it to count before any
waiting of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.activation import Between
from moebius.kernels.launch import cdiv, launch
from moebius.kernels.order import Order
from moebius.kernels.passes import pass_backward, pass_forward
from moebius.kernels.tiles import Tile, block_descriptor, count_row_tiles, find_row_tile, num_programs, scan_width, scatter_rows

ROWS, COLUMNS = 4, 256  # of a pass's block: rows of each warp
STAGES = 3  # blocks that a pass reads ahead: it has few threads to hide the memory's latency with


def up(x_RD: Tensor, w_gate_EDF: Tensor, w_up_EDF: Tensor, order: Order, tile: Tile) -> tuple[Tensor, Tensor]:
    """pre_PRF, hidden_RF, as `forward.up`, with SwiGLU and without dropout."""
    R, (E, D, F) = len(x_RD), w_up_EDF.shape
    pre_PRF, hidden_RF = x_RD.new_empty(2, R, F), x_RD.new_empty(R, F)
    turns, _ = _zeros(x_RD, E, 0, tile)
    programs, lag = _programs(x_RD, 2 * cdiv(F, tile.n), tile)
    launch(
        _woven_up, (programs,), block_descriptor(x_RD, tile.m, tile.k), block_descriptor(w_up_EDF, tile.k, tile.n),
        block_descriptor(w_gate_EDF, tile.k, tile.n), pre_PRF[0], pre_PRF[1], hidden_RF, order.start, turns, D, F, lag, E,
        scan_width(E), tile.m, tile.n, tile.k, ROWS * tile.warps, COLUMNS, STAGES, **tile.options(),
    )  # fmt: skip
    return pre_PRF, hidden_RF


def down_backward(
    grad_RD: Tensor, w_down_EFD: Tensor, pre_PRF: Tensor, gate_TK: Tensor, order: Order, between: Between, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """As `backward.down_backward`."""
    R, (E, F, D) = len(grad_RD), w_down_EFD.shape
    hidden_RF, pre_grad_PRF = grad_RD.new_empty(R, F), torch.empty_like(pre_PRF)
    turns, gate_grad_R = _zeros(grad_RD, E, R, tile)
    programs, lag = _programs(grad_RD, cdiv(F, tile.n), tile)
    launch(
        _woven_down_backward, (programs,), block_descriptor(grad_RD, tile.m, tile.k),
        block_descriptor(w_down_EFD, tile.n, tile.k), hidden_RF, pre_PRF[0], pre_PRF[-1], pre_grad_PRF[0], pre_grad_PRF[-1],
        gate_TK, gate_grad_R, order.assignment_R, order.start, between.seed, turns, D, F, lag, E, scan_width(E),
        between.activation, between.dropout, tile.m, tile.n, tile.k, ROWS * tile.warps, COLUMNS, STAGES, **tile.options(),
    )  # fmt: skip
    return pre_grad_PRF, hidden_RF, gate_grad_R.view(gate_TK.shape)


def _zeros(given_RK: Tensor, num_experts: int, floats: int, tile: Tile) -> tuple[Tensor, Tensor]:
    """Counters: of pieces, and behind it one for each tile of rows, of the pieces of its product that are written. And so
    many numbers in float32."""
    counters = 4 * cdiv(1 + cdiv(len(given_RK), tile.m) + num_experts, 4)  # what follows is aligned
    zeros = torch.zeros(counters + floats, dtype=torch.int32, device=given_RK.device)
    return zeros[:counters], zeros[counters:].view(torch.float32)


def _programs(given_RK: Tensor, pieces: int, tile: Tile) -> tuple[int, int]:
    """How many, and the lag, in tiles of rows whose product has so many pieces."""
    programs = num_programs(given_RK.device, tile)
    return programs, cdiv(2 * programs, pieces)  # one piece of each in work, one to be counted


@triton.jit
def _woven_up(
    x, w_up, w_gate, up_ptr, pre_gate_ptr, hidden_ptr, start_ptr, turns_ptr, D, F, lag, E, WIDTH: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns, passes = tl.cdiv(F, BN), BM // BR
    row_tiles = count_row_tiles(start_ptr, E, WIDTH, BM)
    piece = tl.atomic_add(turns_ptr, 1, sem="relaxed")
    unsaid = -1  # the tile of rows that the program's last product is part of, as long as it has not counted it
    while piece < (row_tiles + lag) * (2 * columns + passes):
        following = tl.atomic_add(turns_ptr, 1, sem="relaxed")
        tile, part = piece // (2 * columns + passes), piece % (2 * columns + passes)
        if part < 2 * columns:
            if tile < row_tiles:
                expert, row, end = find_row_tile(tile, start_ptr, E, WIDTH, BM)
                w, out_ptr, column = w_up, up_ptr, part * BN
                if part >= columns:
                    w, out_ptr, column = w_gate, pre_gate_ptr, (part - columns) * BN
                block = tl.zeros((BM, BN), tl.float32)
                for k in range(0, D, BK):
                    block = tl.dot(x.load([row, k]), w.load([expert * D + k, column]), block, input_precision="ieee")
                _count_written(turns_ptr, unsaid)
                rows = row + tl.arange(0, BM)
                scatter_rows(out_ptr, rows, rows < end, column, block, F, BN)
                unsaid = tile
        elif tile >= lag:
            _count_written(turns_ptr, unsaid)
            unsaid = -1
            expert, row, end = find_row_tile(tile - lag, start_ptr, E, WIDTH, BM)
            _wait_until_written(turns_ptr, tile - lag, 2 * columns)
            rows = row + (part - 2 * columns) * BR + tl.arange(0, BR)
            pass_forward(rows, rows < end, up_ptr, pre_gate_ptr, hidden_ptr, F, BR, BF, STAGES)
        piece = following
    _count_written(turns_ptr, unsaid)


@triton.jit
def _woven_down_backward(
    grad, w_down, hidden_ptr, up_ptr, pre_gate_ptr, up_grad_ptr, pre_gate_grad_ptr, gate_ptr, gate_grad_ptr, assignment_ptr,
    start_ptr, seed_ptr, turns_ptr, D, F, lag, E, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr,
    DROPOUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    columns, passes = tl.cdiv(F, BN), BM // BR
    row_tiles = count_row_tiles(start_ptr, E, WIDTH, BM)
    piece = tl.atomic_add(turns_ptr, 1, sem="relaxed")
    unsaid = -1  # the tile of rows that the program's last product is part of, as long as it has not counted it
    while piece < (row_tiles + lag) * (columns + passes):
        following = tl.atomic_add(turns_ptr, 1, sem="relaxed")
        tile, part = piece // (columns + passes), piece % (columns + passes)
        if part < columns:
            if tile < row_tiles:
                expert, row, end = find_row_tile(tile, start_ptr, E, WIDTH, BM)
                block = tl.zeros((BM, BN), tl.float32)
                for k in range(0, D, BK):
                    right = w_down.load([expert * F + part * BN, k])
                    block = tl.dot(grad.load([row, k]), right.T, block, input_precision="ieee")
                _count_written(turns_ptr, unsaid)
                rows = row + tl.arange(0, BM)
                scatter_rows(hidden_ptr, rows, rows < end, part * BN, block, F, BN)
                unsaid = tile
        elif tile >= lag:
            _count_written(turns_ptr, unsaid)
            unsaid = -1
            expert, row, end = find_row_tile(tile - lag, start_ptr, E, WIDTH, BM)
            _wait_until_written(turns_ptr, tile - lag, columns)
            rows = row + (part - columns) * BR + tl.arange(0, BR)
            pass_backward(
                rows, rows < end, rows < end, hidden_ptr, up_ptr, pre_gate_ptr, up_grad_ptr, pre_gate_grad_ptr, gate_ptr,
                gate_grad_ptr, assignment_ptr, seed_ptr, F, ACTIVATION, DROPOUT, BR, BF, STAGES,
            )  # fmt: skip
        piece = following
    _count_written(turns_ptr, unsaid)


@triton.jit
def _count_written(turns_ptr, tile):
    """One more piece of a tile's product, if there is a tile. Said when the program has computed the next: what it wrote has
    arrived by then, and nobody stands still until it has."""
    tl.debug_barrier()  # all threads have stored theirs before the one that counts
    if tile >= 0:
        tl.atomic_add(turns_ptr + 1 + tile, 1, sem="release")


@triton.jit
def _wait_until_written(turns_ptr, tile, pieces):
    while tl.atomic_add(turns_ptr + 1 + tile, 0, sem="acquire") < pieces:
        pass
