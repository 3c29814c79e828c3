"""Tiles of an expert's rows: where they are, and how to read and write only those rows.

Kernels read and write blocks through tensor descriptors, which Hopper's copy engine (TMA) follows.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import Descriptor, power_of_2

# Constants of `ragged_descriptor`: the row at which the hardware clips, and a stride in elements.
# ROWS such strides are a multiple of 2**64 bytes, so an address that moves by them wraps around to
# where it was.
ROWS: tl.constexpr = tl.constexpr(2**30)
_WRAP = 2**34


class Tile(NamedTuple):
    """How a kernel cuts its matrix product into tiles, and the resources it uses for a tile."""

    m: int
    """Rows of the product in a tile."""

    n: int
    """Columns of the product in a tile."""

    k: int
    """Length of the slice of the summed dimension that one step of the tile's loop covers."""

    warps: int
    """Number of warps that compute a tile together."""

    stages: int
    """Number of the loop's steps whose operands are in flight at once."""

    per_sm: int = 1
    """Number of programs that each multiprocessor runs at the same time."""

    epilogue: str = "fused"
    """Where the elementwise work after the product runs.

    "fused" runs it in the product's kernel, "split" in a second kernel, and "by hand" in a kernel
    of moebius/kernels/hopper. Those of the products next to SwiGLU need bfloat16 and no dropout.
    """

    gathers: bool = False
    """Whether the kernel itself gathers the vectors of the rows' tokens.

    Other kernels read rows that `rows.gather` has written before.
    """

    def options(self) -> dict[str, int | None]:
        """Return the launch options for Triton.

        The 65,536 registers of a multiprocessor are divided among the programs that it runs.
        """
        registers = 65536 // (32 * self.warps * self.per_sm) // 8 * 8
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": min(255, registers) if self.per_sm > 1 else None,
        }


def num_programs(device: torch.device, tile: Tile) -> int:
    """Return how many programs a persistent kernel starts: as many as run at the same time.

    Triton's interpreter, which is for tests, gets 3, so that every program computes several tiles.
    """
    return multiprocessors(device) * tile.per_sm if device.type == "cuda" else 3


@cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors (SMs) of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def scan_width(num_ids: int) -> int:
    """Return the width of the scan that finds a tile's expert: a power of 2, at least `num_ids`.

    The width is never less than 32, so that up to 32 ids share one compiled kernel.
    """
    return max(32, power_of_2(num_ids))


def block_descriptor(matrix: Tensor, rows: int, columns: int) -> Descriptor:
    """Describe blocks of a contiguous tensor whose leading dimensions are flattened into rows.

    Reads outside of the tensor give zero.
    """
    height, width = matrix.numel() // matrix.shape[-1], matrix.shape[-1]
    return Descriptor(matrix, [height, width], [width, 1], [rows, columns])


def stack_descriptor(stack_EMN: Tensor, rows: int, columns: int) -> Descriptor:
    """Describe blocks of single matrices in a stack; no block reaches into the next matrix."""
    return Descriptor(
        stack_EMN, list(stack_EMN.shape), list(stack_EMN.stride()), [1, rows, columns]
    )


def ragged_descriptor(matrix_RN: Tensor, rows: int, columns: int) -> Descriptor:
    """Describe blocks of one expert's rows, for `load_rows` and `store_rows`.

    The hardware clips such a block where the expert's rows end. A descriptor only clips at fixed
    bounds, so this one describes a view of four dimensions: indices into the first two move the
    bound of the third to any row, by addresses that wrap around at 2**64. The trick comes from
    Triton's tools/ragged_tma.py.
    """
    stride = matrix_RN.stride(0)
    shape = [0x7FFF0000, 0x7FFF0000, ROWS.value, matrix_RN.shape[1]]
    return Descriptor(matrix_RN, shape, [_WRAP - stride, stride, stride, 1], [1, 1, rows, columns])


@triton.jit
def load_rows(ragged, end, row, column):
    """Load a block that begins at `row`; rows from `end` on read as zero."""
    block = ragged.load([ROWS, end, ROWS - end + row, column])
    return block.reshape(block.shape[2], block.shape[3])


@triton.jit
def store_rows(ragged, end, row, column, block):
    """Store a block that begins at `row`, without the rows from `end` on."""
    ragged.store(
        [ROWS, end, ROWS - end + row, column], block.reshape(1, 1, block.shape[0], block.shape[1])
    )


@triton.jit
def scatter_rows(out_ptr, to_row, wanted, column, block, D, BN: tl.constexpr):
    """Store the rows of a block that are `wanted` at the rows `to_row` of a matrix of D columns.

    The block's first column goes to `column`.
    """
    columns = column + tl.arange(0, BN)
    place = out_ptr + to_row[:, None].to(tl.int64) * D + columns[None, :]
    tl.store(
        place, block.to(out_ptr.dtype.element_ty), mask=wanted[:, None] & (columns < D)[None, :]
    )


@triton.jit
def count_row_tiles(start_ptr, num_ids, WIDTH: tl.constexpr, BM: tl.constexpr):
    """Return how many tiles of BM rows the ids below `num_ids` have."""
    expert = tl.arange(0, WIDTH)
    start = tl.load(start_ptr + expert, mask=expert < num_ids, other=0)
    end = tl.load(start_ptr + expert + 1, mask=expert < num_ids, other=0)
    return tl.sum(tl.cdiv(end - start, BM))


@triton.jit
def find_row_tile(tile, start_ptr, num_ids, WIDTH: tl.constexpr, BM: tl.constexpr):
    """Return the expert of a tile, the tile's first row, and the end of its expert's rows.

    A tile has BM rows. This scans the starts of all ids, so that no table has to be built for
    each BM.
    """
    expert = tl.arange(0, WIDTH)
    start = tl.load(start_ptr + expert, mask=expert < num_ids, other=0)
    end = tl.load(start_ptr + expert + 1, mask=expert < num_ids, other=0)
    tiles = tl.cdiv(end - start, BM)
    behind = tl.cumsum(tiles, 0) <= tile
    own = tl.sum((behind & (expert < num_ids)).to(tl.int32))
    before = tl.sum(tl.where(expert < own, tiles, 0))
    row = tl.load(start_ptr + own) + (tile - before) * BM
    return own, row, tl.load(start_ptr + own + 1)
