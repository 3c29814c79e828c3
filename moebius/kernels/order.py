"""Sort assignments by expert: a stable counting sort in three kernels.

It uses no atomics, so the order, and every sum that depends on it, is the same every time.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import cdiv, launch, power_of_2

BLOCK = 256  # assignments that one program counts
TILE_ROWS = 128
# The largest number of entries in a matrix of one step: assignments by experts, tiles by experts.
ONE_HOT, TABLE = 8192, 65536
# Ids and blocks in one step of the running sum over blocks.
IDS, BLOCKS = 8, 512


class Order(NamedTuple):
    """The order of the rows: all R = T * K assignments, sorted by expert id.

    Assignments without an expert come last, under the id E. All four tensors are int32.
    """

    assignment_R: Tensor
    """The assignment (token * K + slot) in each row."""

    row_TK: Tensor
    """The row of each assignment: the inverse of `assignment_R`."""

    start: Tensor
    """The first row of each id from 0 to E, followed by R; shape (E + 2,)."""

    tiles: Tensor
    """A table of tiles, each of up to TILE_ROWS rows of one expert; shape (1 + max tiles, 4).

    Entry [0, 0] is the number of tiles. Each later line describes one tile by its expert, its
    first row, the end of its expert's rows, and an unused number. There are enough lines for the
    most tiles that R rows of E experts can have; lines past the actual number are zero.
    """


def sort_by_expert(expert_TK: Tensor, num_experts: int) -> Order:
    """Sort the assignments by expert, keeping the order of those with the same expert.

    `expert_TK` holds ids from 0 to `num_experts`, of any integer type; `num_experts` itself marks
    an assignment without an expert.
    """
    R, device = expert_TK.numel(), expert_TK.device
    blocks = cdiv(R, BLOCK)
    width = power_of_2(num_experts + 2)
    step = min(BLOCK, max(16, ONE_HOT // width))
    assignment_R = torch.empty(R, dtype=torch.int32, device=device)
    row_TK = torch.empty(expert_TK.shape, dtype=torch.int32, device=device)
    start = torch.empty(num_experts + 2, dtype=torch.int32, device=device)
    num_tiles = cdiv(R, TILE_ROWS) + num_experts
    tiles = torch.empty(1 + num_tiles, 4, dtype=torch.int32, device=device)
    tiles_per_program = min(power_of_2(cdiv(num_tiles, blocks)), max(1, TABLE // width))
    # Where experts are many and assignments few, some programs only write lines of the table.
    programs = max(blocks, cdiv(num_tiles, tiles_per_program))
    # A line for each program, and one for the numbers of assignments of the ids in all blocks.
    count = torch.empty(programs + 1, width, dtype=torch.int32, device=device)
    flat = expert_TK.contiguous()
    launch(_count, (blocks,), flat, count, R, width, BLOCK, step)
    launch(_accumulate, (cdiv(width, IDS),), count, blocks, width, IDS, BLOCKS)
    launch(
        _place, (programs,), flat, count, assignment_R, row_TK, start, tiles,
        R, blocks, num_experts, num_tiles, width, BLOCK, step, tiles_per_program, TILE_ROWS,
    )  # fmt: skip
    return Order(assignment_R, row_TK, start, tiles)


@triton.jit
def _count(expert_ptr, count_ptr, R, WIDTH: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr):
    """Count the assignments of each id within this program's block of SIZE assignments."""
    block = tl.program_id(0)
    ids = tl.arange(0, WIDTH)
    count = tl.zeros((STEP, WIDTH), tl.int32)
    for first in range(0, SIZE, STEP):
        assignment = block * SIZE + first + tl.arange(0, STEP)
        expert = tl.load(expert_ptr + assignment, mask=assignment < R, other=WIDTH)
        count += (expert[:, None] == ids[None, :]).to(tl.int32)
    tl.store(count_ptr + block * WIDTH + ids, tl.sum(count, axis=0))


@triton.jit
def _accumulate(count_ptr, blocks, WIDTH: tl.constexpr, IDS: tl.constexpr, BLOCKS: tl.constexpr):
    """Replace each block's counts by the sum of the counts of the blocks before it.

    The line after the last block's gets the sum over all blocks.
    """
    ids = tl.program_id(0) * IDS + tl.arange(0, IDS)
    total = tl.zeros((IDS,), tl.int32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        place = count_ptr + block[:, None] * WIDTH + ids[None, :]
        inside = (block < blocks)[:, None] & (ids < WIDTH)[None, :]
        counts = tl.load(place, mask=inside, other=0)
        tl.store(place, total[None, :] + tl.cumsum(counts, 0) - counts, mask=inside)
        total += tl.sum(counts, axis=0)
    tl.store(count_ptr + blocks * WIDTH + ids, total, mask=ids < WIDTH)


@triton.jit
def _place(
    expert_ptr, count_ptr, assignment_ptr, row_ptr, start_ptr, tiles_ptr, R, blocks, E, num_tiles,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr, TILES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):  # fmt: skip
    """Give each assignment of this program's block its row, and write a part of the tile table.

    An assignment's row is the start of its id, plus the number of assignments of the same id in
    earlier blocks, plus the number before it in this block. A program past the last block has no
    assignments.
    """
    block = tl.program_id(0)
    ids = tl.arange(0, WIDTH)
    total = tl.load(count_ptr + blocks * WIDTH + ids)
    start = tl.cumsum(total, 0) - total
    if block == 0:
        tl.store(start_ptr + ids, start, mask=ids < E + 2)
    tile = block * TILES + tl.arange(0, TILES)
    _write_tiles(
        tiles_ptr,
        tile,
        tile < num_tiles,
        block == 0,
        ids,
        start,
        tl.where(ids < E, total, 0),
        TILE_ROWS,
    )
    following = start + tl.load(count_ptr + block * WIDTH + ids)
    for first in range(0, SIZE, STEP):
        assignment = block * SIZE + first + tl.arange(0, STEP)
        expert = tl.load(expert_ptr + assignment, mask=assignment < R, other=WIDTH)
        is_own = (expert[:, None] == ids[None, :]).to(tl.int32)
        row = tl.sum(is_own * (following[None, :] + tl.cumsum(is_own, 0) - 1), axis=1)
        tl.store(row_ptr + assignment, row, mask=assignment < R)
        tl.store(assignment_ptr + row, assignment, mask=assignment < R)
        following += tl.sum(is_own, axis=0)


@triton.jit
def _write_tiles(tiles_ptr, tile, exists, is_first, ids, start, count, TILE_ROWS: tl.constexpr):
    """Write the table's lines for the tiles numbered `tile`; `is_first` also writes their number.

    `start` and `count` are the first row and the number of rows of each of the `ids`.
    """
    tiles_per_id = tl.cdiv(count, TILE_ROWS)
    tile_end = tl.cumsum(tiles_per_id, 0)
    if is_first:
        tl.store(tiles_ptr, tl.sum(tiles_per_id))
    is_own = (tile[:, None] >= (tile_end - tiles_per_id)[None, :]) & (
        tile[:, None] < tile_end[None, :]
    )
    row = start[None, :] + (tile[:, None] - (tile_end - tiles_per_id)[None, :]) * TILE_ROWS
    place = tiles_ptr + 4 * (tile + 1)
    tl.store(place, tl.sum(tl.where(is_own, ids[None, :], 0), axis=1), mask=exists)
    tl.store(place + 1, tl.sum(tl.where(is_own, row, 0), axis=1), mask=exists)
    tl.store(place + 2, tl.sum(tl.where(is_own, (start + count)[None, :], 0), axis=1), mask=exists)
