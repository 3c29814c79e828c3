# What runs in a kernel is not Python: Gluon's stand-ins for its values have other types.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false
"""What the hand-written kernels have in common: one half of the warps multiplies while the other runs the epilogue.

Eight warps compute tiles of 128 x 256, of which each writes its sums to shared memory in bfloat16 and goes on to its next;
others turn them into what the kernel is for. Triton's own pipeline leaves the tensor cores idle in every epilogue, and two
groups of four warps that take turns (CUTLASS's ping-pong) want more of shared memory than it gives: instructions of 64 x 128
read 96 bytes a cycle, tiles of 128 x 128 bring in 64 more, and there are 128. docs/log.md has the times of all.
"""

from functools import cache

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from moebius.kernels import launch, tiles
from moebius.kernels.order import TILE_ROWS

BM, BN = TILE_ROWS, 256
BK, STAGES = 32, 6  # as much in flight as fits beside a tile's sums; half of it in steps of 64 is slower
WIDTH: gl.constexpr = gl.constexpr(64)  # columns of the pieces that sums are kept in: a line of 128 bytes
CHUNK_ROWS: gl.constexpr = gl.constexpr(32)  # of what an epilogue does at a time
barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # its name since triton 3.7


class Descriptor(TensorDescriptor):
    """As `launch.Descriptor`, for Gluon."""

    def __post_init__(self) -> None:
        pass


def blocks(matrix: Tensor, rows: int, columns: int) -> Descriptor:
    """As `tiles.block_descriptor`."""
    return _with_layout(tiles.block_descriptor(matrix, rows, columns))


def ragged(matrix_RN: Tensor, rows: int, columns: int) -> Descriptor:
    """As `tiles.ragged_descriptor`."""
    return _with_layout(tiles.ragged_descriptor(matrix_RN, rows, columns))


def _with_layout(plain: launch.Descriptor) -> Descriptor:
    return Descriptor(plain.base, plain.shape, plain.strides, plain.block_shape, _layout(*plain.block_shape))


@cache
def _layout(*block: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for(list(block), gl.bfloat16)


@gluon.jit
def barriers(COUNT: gl.constexpr):
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(made.index(i), count=1)
    return made


@gluon.jit
def find(table_ptr, tile, tiles, columns):
    """A tile's expert, its first row and its expert's end; of the last one for a tile that there is not, or no rows at all."""
    place = table_ptr + 4 * (gl.maximum(gl.minimum(tile, tiles - 1), 0) // columns + 1)
    return gl.load(place), gl.load(place + 1), gl.load(place + 2)


@gluon.jit
def hand_over(block, sums, written, taken, turn):
    """A tile's sums, in four pieces of columns, when the epilogue has done with the tile's before."""
    BM: gl.constexpr = block.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, WIDTH, 16])
    left, right = _halves(block.to(gl.bfloat16))
    first, second = _halves(left)
    third, fourth = _halves(right)
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
def _halves(block):
    """The left and the right half of the columns: registers stay where they are."""
    return block.reshape([block.shape[0], 2, block.shape[1] // 2]).permute((0, 2, 1)).split()


@gluon.jit
def sigmoid(x):
    """Two instructions for special functions, each right to two units in the last place of float32."""
    power = gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * -1.4426950408889634], gl.float32, True, 1)
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], gl.float32, True, 1)
