# What runs in a kernel is not Python: Gluon's stand-ins for its values have other types.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false
"""The up and gate products with SwiGLU, written for Hopper by hand (Triton's Gluon): they write more bytes than they read.

A producer warp feeds two groups of four warps in turn, each with a tile of 128 x 128 of its own: while one runs its epilogue
the other has the tensor cores (the ping-pong schedule of CUTLASS). Triton's own pipeline leaves them idle in every epilogue;
docs/log.md has both times.
"""

from functools import cache

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from moebius.kernels.launch import launch
from moebius.kernels.order import TILE_ROWS, Order
from moebius.kernels.tiles import multiprocessors

BM, BN, BK, STAGES = TILE_ROWS, 128, 64, 4
REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS = 168, 232, 40
_ROWS: gl.constexpr = gl.constexpr(2**30)
_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # its name since triton 3.7


def up(x_RD: Tensor, w_gate_EDF: Tensor, w_up_EDF: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """pre_PRF, hidden_RF, as `forward.up`, with SwiGLU and without dropout."""
    _, D, F = w_up_EDF.shape
    pre_PRF, hidden_RF = x_RD.new_empty(2, len(x_RD), F), x_RD.new_empty(len(x_RD), F)
    half = BN // 2
    launch(
        _up, (multiprocessors(x_RD.device),), _blocks(x_RD, BM, BK), _blocks(w_up_EDF, BK, half), _blocks(w_gate_EDF, BK, half),
        *(_ragged(made_RF, BM, half) for made_RF in (pre_PRF[0], pre_PRF[1], hidden_RF)),
        order.tiles, D, F, BM, BN, BK, STAGES, CONSUMER_REGISTERS, PRODUCER_REGISTERS,
        num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
    return pre_PRF, hidden_RF


class _Descriptor(TensorDescriptor):
    """As `launch.Descriptor`, for Gluon."""

    def __post_init__(self) -> None:
        pass


@cache
def _layout(*block: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for(list(block), gl.bfloat16)


def _blocks(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """As `tiles.block_descriptor`."""
    height = matrix.numel() // matrix.shape[-1]
    return _Descriptor(matrix, [height, matrix.shape[-1]], [matrix.shape[-1], 1], [rows, columns], _layout(rows, columns))


def _ragged(matrix_RN: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """As `tiles.ragged_descriptor`."""
    stride, shape = matrix_RN.stride(0), [0x7FFF0000, 0x7FFF0000, 2**30, matrix_RN.shape[1]]
    return _Descriptor(
        matrix_RN, shape, [2**34 - stride, stride, stride, 1], [1, 1, rows, columns], _layout(1, 1, rows, columns)
    )


@gluon.jit
def _up(
    x, w_up, w_gate, pre_up, pre_gate, hidden, table_ptr, D, F, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, CONSUMER: gl.constexpr, PRODUCER: gl.constexpr,
):  # fmt: skip
    a = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BM, BK], x.layout)
    wide: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BK, BN], gl.bfloat16)
    b = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BK, BN], wide)
    made = gl.allocate_shared_memory(gl.bfloat16, [6, BM, BN // 2], w_up.layout)
    full, empty = _barriers(STAGES)
    turns, _ = _barriers(2)
    columns = gl.cdiv(F, BN // 2)
    gl.warp_specialize(
        [
            (_up_consumer, (0, a, b, made, full, empty, turns, pre_up, pre_gate, hidden, table_ptr, columns, D)),
            (_up_consumer, (1, a, b, made, full, empty, turns, pre_up, pre_gate, hidden, table_ptr, columns, D)),
            (_up_producer, (x, w_up, w_gate, a, b, full, empty, table_ptr, columns, D)),
        ],
        [4, 1],
        [CONSUMER, PRODUCER],
    )


@gluon.jit
def _barriers(COUNT: gl.constexpr):
    full = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    return full, empty


@gluon.jit
def _up_producer(x, w_up, w_gate, a, b, full, empty, table_ptr, columns, D):
    STAGES: gl.constexpr = a.shape[0]
    BK: gl.constexpr = a.shape[2]
    HALF: gl.constexpr = b.shape[2] // 2
    tiles = gl.load(table_ptr) * columns
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        place = table_ptr + 4 * (tile // columns + 1)
        expert, row, column = gl.load(place), gl.load(place + 1), tile % columns * HALF
        for k in range(0, D, BK):
            stage = step % STAGES
            mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
            ready = full.index(stage)
            mbarrier.expect(ready, x.block_type.nbytes + w_up.block_type.nbytes + w_gate.block_type.nbytes)
            tma.async_copy_global_to_shared(x, [row, k], ready, a.index(stage))
            halves = b.index(stage)._reinterpret(gl.bfloat16, [2, BK, HALF], w_up.layout)
            tma.async_copy_global_to_shared(w_up, [expert * D + k, column], ready, halves.index(0))
            tma.async_copy_global_to_shared(w_gate, [expert * D + k, column], ready, halves.index(1))
            step += 1


@gluon.jit
def _up_consumer(WHICH: gl.constexpr, a, b, made, full, empty, turns, pre_up, pre_gate, hidden, table_ptr, columns, D):
    BK: gl.constexpr = a.shape[2]
    HALF: gl.constexpr = b.shape[2] // 2
    tiles, programs = gl.load(table_ptr) * columns, gl.num_programs(0)
    steps = gl.cdiv(D, BK)
    half: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    turn = 0
    for tile in range(gl.program_id(0) + WHICH * programs, tiles, 2 * programs):
        place = table_ptr + 4 * (tile // columns + 1)
        row, end, column = gl.load(place + 1), gl.load(place + 2), tile % columns * HALF
        block = _product(WHICH, a, b, full, empty, turns, turn, steps)
        up_block, gate_block = _halves(block)
        up_block, gate_block = gl.convert_layout(up_block, half), gl.convert_layout(gate_block, half)
        tma.store_wait(0)  # of the tile before, whose memory is written to next
        _barrier()
        made.index(3 * WHICH + 0).store(up_block.to(gl.bfloat16))
        made.index(3 * WHICH + 1).store(gate_block.to(gl.bfloat16))
        made.index(3 * WHICH + 2).store((up_block * gate_block / (1.0 + gl.exp(-gate_block))).to(gl.bfloat16))
        fence_async_shared()
        _store_rows(pre_up, end, row, column, made.index(3 * WHICH + 0))
        _store_rows(pre_gate, end, row, column, made.index(3 * WHICH + 1))
        _store_rows(hidden, end, row, column, made.index(3 * WHICH + 2))
        turn += 1  # noqa: SIM113  Gluon has no enumerate
    tma.store_wait(0)


@gluon.jit
def _product(WHICH: gl.constexpr, a, b, full, empty, turns, turn, steps):
    """The sum over the stages of this group's tile number `turn`, each handed back once the next product has been started.

    The groups take turns: a barrier tells a phase from the next one only, so nobody may wait for stages further ahead.
    """
    STAGES: gl.constexpr = a.shape[0]
    BM: gl.constexpr = a.shape[1]
    BN: gl.constexpr = b.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    block = gl.zeros([BM, BN], gl.float32, layout)
    first = (2 * turn + WHICH) * steps
    mbarrier.wait(turns.index(WHICH), (turn + 1 - WHICH) & 1)
    for step in range(first, first + steps):
        stage = step % STAGES
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        block = warpgroup_mma(a.index(stage), b.index(stage), block, is_async=True)
        block = warpgroup_mma_wait(1, deps=[block])
        mbarrier.arrive(empty.index((step - 1) % STAGES), pred=step > first)
    mbarrier.arrive(turns.index(1 - WHICH))
    block = warpgroup_mma_wait(0, deps=[block])
    mbarrier.arrive(empty.index((first + steps - 1) % STAGES))
    return block


@gluon.jit
def _halves(block):
    """The left and the right half of the columns: registers stay where they are."""
    return block.reshape([block.shape[0], 2, block.shape[1] // 2]).permute((0, 2, 1)).split()


@gluon.jit
def _store_rows(ragged, end, row, column, memory):
    shape: gl.constexpr = [1, 1, memory.shape[0], memory.shape[1]]
    block = memory._reinterpret(memory.dtype, shape, ragged.layout)
    tma.async_copy_shared_to_global(ragged, [_ROWS, end, _ROWS - end + row, column], block)
