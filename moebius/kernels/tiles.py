"""Where an expert's rows lie, and descriptors that read and write them without touching their neighbours'."""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import Descriptor, power_of_2

ROWS: tl.constexpr = tl.constexpr(2**30)
_WRAP = 2**34  # elements: 2**30 such steps are a multiple of 2**64 bytes, an address that has gone round


class Tile(NamedTuple):
    """How a kernel cuts its product: tiles of m x n, k at a time, and what runs one.

    epilogue: "fused" into the product, "split" off into a second kernel, or "by hand": of hopper/, for SwiGLU in bfloat16
    without dropout.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    per_sm: int = 1
    epilogue: str = "fused"

    def options(self) -> dict[str, int | None]:
        """A multiprocessor's 65,536 registers are shared by the programs that it is to hold."""
        registers = 65536 // (32 * self.warps * self.per_sm) // 8 * 8
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": min(255, registers) if self.per_sm > 1 else None}


def num_programs(device: torch.device, tile: Tile) -> int:
    """Programs of a persistent kernel: as many as run at once. The interpreter's few make each do several tiles."""
    return multiprocessors(device) * tile.per_sm if device.type == "cuda" else 3


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def scan_width(num_ids: int) -> int:
    """Of the scan over all ids for a tile's own; the same for up to 32, so that their kernels are compiled once."""
    return max(32, power_of_2(num_ids))


def block_descriptor(matrix: Tensor, rows: int, columns: int) -> Descriptor:
    """Blocks of a contiguous tensor's last two dimensions, the ones before flattened into rows. Outside it reads give zero."""
    height, width = matrix.numel() // matrix.shape[-1], matrix.shape[-1]
    return Descriptor(matrix, [height, width], [width, 1], [rows, columns])


def stack_descriptor(stack_EMN: Tensor, rows: int, columns: int) -> Descriptor:
    """Blocks of one matrix of a stack."""
    return Descriptor(stack_EMN, list(stack_EMN.shape), list(stack_EMN.stride()), [1, rows, columns])


def ragged_descriptor(matrix_RN: Tensor, rows: int, columns: int) -> Descriptor:
    """Blocks of an expert's rows, for `load_rows` and `store_rows`: the hardware clips them where the expert ends.

    A view of four dimensions whose first two shift the third's fixed bound to any row, by addresses that go round 2**64
    (Triton's tools/ragged_tma.py, where the trick is from).
    """
    stride = matrix_RN.stride(0)
    shape = [0x7FFF0000, 0x7FFF0000, ROWS.value, matrix_RN.shape[1]]
    return Descriptor(matrix_RN, shape, [_WRAP - stride, stride, stride, 1], [1, 1, rows, columns])


@triton.jit
def load_rows(ragged, end, row, column):
    """Rows from `row` on, zero from `end` on."""
    block = ragged.load([ROWS, end, ROWS - end + row, column])
    return block.reshape(block.shape[2], block.shape[3])


@triton.jit
def store_rows(ragged, end, row, column, block):
    """Rows from `row` on, except those from `end` on."""
    ragged.store([ROWS, end, ROWS - end + row, column], block.reshape(1, 1, block.shape[0], block.shape[1]))


@triton.jit
def scatter_rows(out_ptr, to_row, wanted, column, block, D, BN: tl.constexpr):
    """Each wanted row of the block to a row of an (N, D)."""
    columns = column + tl.arange(0, BN)
    place = out_ptr + to_row[:, None].to(tl.int64) * D + columns[None, :]
    tl.store(place, block.to(out_ptr.dtype.element_ty), mask=wanted[:, None] & (columns < D)[None, :])


@triton.jit
def count_row_tiles(start_ptr, num_ids, WIDTH: tl.constexpr, BM: tl.constexpr):
    """How many tiles of BM rows the first num_ids experts have."""
    expert = tl.arange(0, WIDTH)
    start = tl.load(start_ptr + expert, mask=expert < num_ids, other=0)
    end = tl.load(start_ptr + expert + 1, mask=expert < num_ids, other=0)
    return tl.sum(tl.cdiv(end - start, BM))


@triton.jit
def find_row_tile(tile, start_ptr, num_ids, WIDTH: tl.constexpr, BM: tl.constexpr):
    """The expert of a tile, its first row and its expert's end. A scan of E numbers: no table has to be built for each BM."""
    expert = tl.arange(0, WIDTH)
    start = tl.load(start_ptr + expert, mask=expert < num_ids, other=0)
    end = tl.load(start_ptr + expert + 1, mask=expert < num_ids, other=0)
    tiles = tl.cdiv(end - start, BM)
    behind = tl.cumsum(tiles, 0) <= tile
    own = tl.sum((behind & (expert < num_ids)).to(tl.int32))
    before = tl.sum(tl.where(expert < own, tiles, 0))
    row = tl.load(start_ptr + own) + (tile - before) * BM
    return own, row, tl.load(start_ptr + own + 1)
