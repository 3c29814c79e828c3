"""Sorting assignments by expert: a stable counting sort of two kernels, without atomics, so it is the same each time."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import cdiv, launch, power_of_2

BLOCK = 1024  # assignments a program counts
TILE_ROWS = 128
ONE_HOT = 8192  # entries of a block of assignments by experts that a program holds at once


class Order(NamedTuple):
    """The rows of all assignments, sorted by expert; those without an expert come last, under the id num_experts."""

    assignment_R: Tensor  # int32: which flat assignment (token * K + slot) a row is
    row_TK: Tensor  # int32, the inverse: which row an assignment is
    start: Tensor  # int32, (num_experts + 2): the first row of each id, and R
    tiles: Tensor  # int32, (1 + tiles, 4): how many tiles of TILE_ROWS rows there are; each one's expert, row, end


def sort_by_expert(expert_TK: Tensor, num_experts: int) -> Order:
    """expert_TK: ids from 0 to num_experts, any integer type."""
    R, device = expert_TK.numel(), expert_TK.device
    blocks = cdiv(R, BLOCK)
    width = power_of_2(num_experts + 2)
    step = min(BLOCK, max(16, ONE_HOT // width))
    count = torch.empty(blocks, width, dtype=torch.int32, device=device)
    assignment_R = torch.empty(R, dtype=torch.int32, device=device)
    row_TK = torch.empty(expert_TK.shape, dtype=torch.int32, device=device)
    start = torch.empty(num_experts + 2, dtype=torch.int32, device=device)
    num_tiles = cdiv(R, TILE_ROWS) + num_experts
    tiles = torch.empty(1 + num_tiles, 4, dtype=torch.int32, device=device)
    tiles_each = power_of_2(cdiv(num_tiles, blocks))
    flat = expert_TK.contiguous()
    launch(_count, (blocks,), flat, count, R, width, BLOCK, step)
    launch(
        _place, (blocks,), flat, count, assignment_R, row_TK, start, tiles, R, blocks, num_experts, num_tiles, width, BLOCK,
        step, tiles_each, TILE_ROWS,
    )  # fmt: skip
    return Order(assignment_R, row_TK, start, tiles)


@triton.jit
def _count(expert_ptr, count_ptr, R, WIDTH: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr):
    block = tl.program_id(0)
    every = tl.arange(0, WIDTH)
    count = tl.zeros((WIDTH,), tl.int32)
    for first in range(0, SIZE, STEP):
        assignment = block * SIZE + first + tl.arange(0, STEP)
        expert = tl.load(expert_ptr + assignment, mask=assignment < R, other=WIDTH)
        count += tl.sum((expert[:, None] == every[None, :]).to(tl.int32), axis=0)
    tl.store(count_ptr + block * WIDTH + every, count)


@triton.jit
def _place(
    expert_ptr, count_ptr, assignment_ptr, row_ptr, start_ptr, tiles_ptr, R, blocks, E, num_tiles, WIDTH: tl.constexpr,
    SIZE: tl.constexpr, STEP: tl.constexpr, TILES: tl.constexpr, TILE_ROWS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    every = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.int32)
    earlier = tl.zeros((WIDTH,), tl.int32)
    for first in range(0, blocks, STEP):
        other = first + tl.arange(0, STEP)
        counts = tl.load(count_ptr + other[:, None] * WIDTH + every[None, :], mask=(other < blocks)[:, None], other=0)
        total += tl.sum(counts, axis=0)
        earlier += tl.sum(tl.where((other < block)[:, None], counts, 0), axis=0)
    start = tl.cumsum(total, 0) - total
    if block == 0:
        tl.store(start_ptr + every, start, mask=every < E + 2)
    tile = block * TILES + tl.arange(0, TILES)
    _write_tiles(tiles_ptr, tile, tile < num_tiles, block == 0, every, start, tl.where(every < E, total, 0), TILE_ROWS)
    following = start + earlier
    for first in range(0, SIZE, STEP):
        assignment = block * SIZE + first + tl.arange(0, STEP)
        expert = tl.load(expert_ptr + assignment, mask=assignment < R, other=WIDTH)
        is_own = (expert[:, None] == every[None, :]).to(tl.int32)
        row = tl.sum(is_own * (following[None, :] + tl.cumsum(is_own, 0) - 1), axis=1)
        tl.store(row_ptr + assignment, row, mask=assignment < R)
        tl.store(assignment_ptr + row, assignment, mask=assignment < R)
        following += tl.sum(is_own, axis=0)


@triton.jit
def _write_tiles(tiles_ptr, tile, wanted, is_first, every, start, count, TILE_ROWS: tl.constexpr):
    each = tl.cdiv(count, TILE_ROWS)
    behind = tl.cumsum(each, 0)
    if is_first:
        tl.store(tiles_ptr, tl.sum(each))
    is_own = (tile[:, None] >= (behind - each)[None, :]) & (tile[:, None] < behind[None, :])
    row = start[None, :] + (tile[:, None] - (behind - each)[None, :]) * TILE_ROWS
    place = tiles_ptr + 4 * (tile + 1)
    tl.store(place, tl.sum(tl.where(is_own, every[None, :], 0), axis=1), mask=wanted)
    tl.store(place + 1, tl.sum(tl.where(is_own, row, 0), axis=1), mask=wanted)
    tl.store(place + 2, tl.sum(tl.where(is_own, (start + count)[None, :], 0), axis=1), mask=wanted)
