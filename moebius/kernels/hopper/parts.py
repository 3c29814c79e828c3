# Gluon's compiler gives the values in a kernel other types than pyright infers for them.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportReturnType=false
"""Parts of the hand-written kernels, in which the tensor cores do not wait for an epilogue.

In up.py and down_backward.py, eight warps compute tiles of 128 x 256. They write the sums of a
tile to shared memory in bfloat16 and continue with the next tile, while other warps turn these
sums into the kernel's results. In product.py and weight_gradient.py, two groups of four warps
share such a tile, and one of them multiplies while the other stores.

The alternatives are slower. Triton's own pipeline leaves the tensor cores idle during every
epilogue. Two groups with a tile each that take turns (CUTLASS's ping-pong) need more than the 128
bytes per cycle that shared memory delivers: instructions of 64 x 128 read 96 bytes per cycle, and
loading tiles of 128 x 128 writes another 64.
"""
# docs/log/kernels.md has the measured times of all alternatives.

from functools import cache

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from moebius.kernels import launch, tiles
from moebius.kernels.order import TILE_ROWS
from moebius.kernels.tiles import ROWS

BM, BN = TILE_ROWS, 256
# The six stages fill the shared memory that a tile's sums leave free. Three stages of 64 take the
# same memory and are slower.
BK, STAGES = 32, 6
# A tile's sums are kept in four pieces of 64 columns: the 128 bytes that shared memory swizzles.
WIDTH: gl.constexpr = gl.constexpr(64)
# An epilogue processes this many rows of a piece at a time.
CHUNK_ROWS: gl.constexpr = gl.constexpr(32)
# Triton 3.7 renamed thread_barrier to barrier.
barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier


class Descriptor(TensorDescriptor):
    """The same as `launch.Descriptor`, for Gluon."""

    def __post_init__(self) -> None:
        pass


def blocks(matrix: Tensor, rows: int, columns: int) -> Descriptor:
    """Return the Gluon version of `tiles.block_descriptor`."""
    return _with_layout(tiles.block_descriptor(matrix, rows, columns))


def ragged(matrix_RN: Tensor, rows: int, columns: int) -> Descriptor:
    """Return the Gluon version of `tiles.ragged_descriptor`."""
    return _with_layout(tiles.ragged_descriptor(matrix_RN, rows, columns))


def stack(stack_EMN: Tensor, rows: int, columns: int) -> Descriptor:
    """Return the Gluon version of `tiles.stack_descriptor`."""
    return _with_layout(tiles.stack_descriptor(stack_EMN, rows, columns))


def _with_layout(plain: launch.Descriptor) -> Descriptor:
    return Descriptor(
        plain.base, plain.shape, plain.strides, plain.block_shape, _layout(*plain.block_shape)
    )


@cache
def _layout(*block: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for(list(block), gl.bfloat16)


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr = 1):
    """Allocate COUNT barriers in shared memory, each of which waits for ARRIVALS arrivals."""
    memory = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(memory.index(i), count=ARRIVALS)
    return memory


@gluon.jit
def find(table_ptr, tile, tiles, columns):
    """Return the expert of a tile, the tile's first row, and the end of its expert's rows.

    `table_ptr` points to `Order.tiles`, in which one line stands for all `columns` tiles of the
    same rows. `tiles` is the total number of tiles; a tile past the last one gets the last tile's
    values. If there are no tiles at all, the values are zeros, which mean an expert without rows.
    """
    place = table_ptr + 4 * (gl.maximum(gl.minimum(tile, tiles - 1), 0) // columns + 1)
    return gl.load(place), gl.load(place + 1), gl.load(place + 2)


@gluon.jit
def hand_over(block, sums, written, taken, turn):
    """Write a tile's sums to shared memory, in four pieces of columns, for the epilogue to read.

    This waits until the epilogue has `taken` the sums of the previous tile, and then signals
    `written`. `turn` counts the program's tiles from 0.
    """
    BM: gl.constexpr = block.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, WIDTH, 16])
    left, right = halves(block.to(gl.bfloat16))
    first, second = halves(left)
    third, fourth = halves(right)
    mbarrier.wait(taken.index(0), (turn & 1) ^ 1)
    pieces = sums._reinterpret(gl.bfloat16, [4, BM, WIDTH], sums.layout)
    pieces.index(0).store(gl.convert_layout(first, layout))
    pieces.index(1).store(gl.convert_layout(second, layout))
    pieces.index(2).store(gl.convert_layout(third, layout))
    pieces.index(3).store(gl.convert_layout(fourth, layout))
    fence_async_shared()
    barrier()
    mbarrier.arrive(written.index(0))


@gluon.jit
def load_tokens(assignment_ptr, row, end, rows, SLOTS: gl.constexpr):
    """Return the tokens of the rows `row` + `rows`; those of rows from `end` on are 0."""
    wanted = row + rows < end
    return gl.load(assignment_ptr + row + rows, mask=wanted, other=0) // SLOTS


@gluon.jit
def gather_rows(vectors_ptr, tokens, wanted, column, lanes, D, memory):
    """Start copying some columns of the vectors of `tokens`, which have D numbers.

    The columns are `column` + `lanes`, where `lanes` is a range and D is a multiple of 8. Vectors
    that are not `wanted`, and columns from D on, are filled with zeros.
    """
    place = vectors_ptr + (tokens.to(gl.int64) * D + column)[:, None] + lanes[None, :]
    # The compiler does not see through the arguments of a role that a place is aligned, and that
    # eight columns are inside or outside of the vector together.
    place = gl.max_contiguous(gl.multiple_of(place, (1, 16)), (1, 8))
    inside = wanted[:, None] & (lanes // 8 * 8 < D - column)[None, :]
    async_copy.async_copy_global_to_shared(memory, place, mask=inside)


@gluon.jit
def store_rows(ragged, end, row, column, memory):
    """Start storing a block from shared memory at `row`, without the rows from `end` on."""
    shape: gl.constexpr = [1, 1, memory.shape[0], memory.shape[1]]
    block = memory._reinterpret(memory.dtype, shape, ragged.layout)
    tma.async_copy_shared_to_global(ragged, [ROWS, end, ROWS - end + row, column], block)


@gluon.jit
def keep(block, sums, GROUP: gl.constexpr):
    """Write a group's sums to shared memory in two or four pieces, for the copy engine.

    This waits until the copy engine has read the group's previous sums.
    """
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    left, right = halves(block.to(gl.bfloat16))
    tma.store_wait(0)
    barrier()
    if block.shape[1] == 2 * WIDTH:
        sums.index(4 * GROUP).store(gl.convert_layout(left, layout))
        sums.index(4 * GROUP + 1).store(gl.convert_layout(right, layout))
    else:
        first, second = halves(left)
        third, fourth = halves(right)
        sums.index(4 * GROUP).store(gl.convert_layout(first, layout))
        sums.index(4 * GROUP + 1).store(gl.convert_layout(second, layout))
        sums.index(4 * GROUP + 2).store(gl.convert_layout(third, layout))
        sums.index(4 * GROUP + 3).store(gl.convert_layout(fourth, layout))
    fence_async_shared()
    barrier()


@gluon.jit
def halves(block):
    """Return the left and the right half of the columns, without moving any registers."""
    return block.reshape([block.shape[0], 2, block.shape[1] // 2]).permute((0, 2, 1)).split()


@gluon.jit
def sigmoid(x):
    """Return the sigmoid of x, from one approximate exponential and one approximate reciprocal.

    Each of the two instructions is accurate to two units in the last place of float32.
    """
    power = gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * -1.4426950408889634], gl.float32, True, 1
    )
    return gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], gl.float32, True, 1
    )
