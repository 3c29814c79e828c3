# Gluon's compiler gives the values in a kernel other types than pyright infers for them.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportReturnType=false
# Its branches are decided when a kernel is compiled, and then no variable is unbound.
# pyright: reportPossiblyUnboundVariable=false
"""The up and gate projections with SwiGLU, written by hand for Hopper.

One warp fetches the operands, eight warps multiply them, and four warps compute the activation.
Where the rows of x are gathered, four warps fetch: the copy engine of Hopper cannot gather.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from moebius.kernels.hopper.parts import (
    BM,
    BN,
    CHUNK_ROWS,
    WIDTH,
    barrier,
    barriers,
    blocks,
    find,
    gather_rows,
    hand_over,
    load_tokens,
    ragged,
    sigmoid,
    store_rows,
)
from moebius.kernels.launch import launch
from moebius.kernels.order import Order
from moebius.kernels.tiles import Tile, multiprocessors

# Registers per thread: for all warps at the start, then for the warps with a special role.
REGISTERS, EPILOGUE_REGISTERS, PRODUCER_REGISTERS = 128, 152, 24
# The same where four warps fetch: they gather the rows of x.
GATHERING_EPILOGUE_REGISTERS, GATHERING_REGISTERS = 136, 40


def up(
    x: Tensor, w_gate_EDF: Tensor, w_up_EDF: Tensor, order: Order, tile: Tile
) -> tuple[Tensor, Tensor]:
    """Return pre_PRF and hidden_RF like `forward.up`, for SwiGLU without dropout.

    `x` is x_TD if the tile gathers, and x_RD otherwise.
    """
    (_, D, F), R = w_up_EDF.shape, len(order.assignment_R)
    pre_PRF, hidden_RF = x.new_empty(2, R, F), x.new_empty(R, F)
    weights = [blocks(w_EDF, tile.k, BN // 2) for w_EDF in (w_up_EDF, w_gate_EDF)]
    planes = [ragged(pre_RF, BM, WIDTH.value) for pre_RF in (pre_PRF[0], pre_PRF[1])]
    registers = (
        (GATHERING_EPILOGUE_REGISTERS, GATHERING_REGISTERS)
        if tile.gathers
        else (EPILOGUE_REGISTERS, PRODUCER_REGISTERS)
    )
    launch(
        _hopper_up, (multiprocessors(x.device),), blocks(x, BM, tile.k), x, *weights, *planes,
        hidden_RF, order.assignment_R, order.tiles, D, F, tile.gathers,
        order.row_TK.shape[1], BM, BN, tile.k, tile.stages, *registers,
        num_warps=8, maxnreg=REGISTERS,
    )  # fmt: skip
    return pre_PRF, hidden_RF


@gluon.jit
def _hopper_up(
    x, x_ptr, w_up, w_gate, pre_up, pre_gate, hidden_ptr, assignment_ptr, table_ptr, D, F,
    GATHERS: gl.constexpr, SLOTS: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
    EPILOGUE: gl.constexpr, PRODUCER: gl.constexpr,
):  # fmt: skip
    """Allocate shared memory and barriers, and give the warps their roles.

    `full` and `empty` pass the stages of operands between the fetching and the multiplying warps;
    `written` and `taken` pass a tile's sums between the multiplying and the activating warps.
    """
    a = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BM, BK], x.layout)
    b = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BK, BN], w_up.layout)
    sums = gl.allocate_shared_memory(
        gl.bfloat16, [4 * BM // CHUNK_ROWS, CHUNK_ROWS, WIDTH], gl.NVMMASharedLayout(128, 16, 2)
    )
    # Each of the 128 threads that gather reports that its copies have arrived.
    full = barriers(STAGES, 129 if GATHERS else 1)
    empty = barriers(STAGES)
    written, taken = barriers(1), barriers(1)
    columns = gl.cdiv(F, BN // 2)
    gl.warp_specialize(
        [
            (_multiply, (a, b, sums, full, empty, written, taken, table_ptr, columns, D, GATHERS)),
            (
                _activate,
                (sums, written, taken, pre_up, pre_gate, hidden_ptr, table_ptr, columns, F),
            ),
            (
                _fetch,
                (
                    x, x_ptr, w_up, w_gate, a, b, full, empty, assignment_ptr, table_ptr, columns,
                    D, GATHERS, SLOTS,
                ),
            ),
        ],
        [4, 4 if GATHERS else 1],
        [EPILOGUE, PRODUCER],
    )  # fmt: skip


@gluon.jit
def _fetch(
    x, x_ptr, w_up, w_gate, a, b, full, empty, assignment_ptr, table_ptr, columns, D,
    GATHERS: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Copy blocks of x, and of w_up and w_gate side by side, into stages that are empty."""
    STAGES: gl.constexpr = a.shape[0]
    BM: gl.constexpr = a.shape[1]
    BK: gl.constexpr = a.shape[2]
    HALF: gl.constexpr = b.shape[2] // 2
    WEIGHTS_BYTES: gl.constexpr = w_up.block_type.nbytes + w_gate.block_type.nbytes
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BK, BK // 8], [4, 1], [1, 0])
    tiles = gl.load(table_ptr) * columns
    step = 0
    expert, row, end = find(table_ptr, gl.program_id(0), tiles, columns)
    if GATHERS:
        rows = gl.arange(0, BM, layout=gl.SliceLayout(1, layout))
        lanes = gl.arange(0, BK, layout=gl.SliceLayout(0, layout))
        tokens = load_tokens(assignment_ptr, row, end, rows, SLOTS)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        column = tile % columns * HALF
        # A load returns after the copies that were started before it, so the next tile's place
        # and tokens are loaded before this tile's copies are.
        next_expert, next_row, next_end = find(
            table_ptr, tile + gl.num_programs(0), tiles, columns
        )
        if GATHERS:
            next_tokens = load_tokens(assignment_ptr, next_row, next_end, rows, SLOTS)
        for k in range(0, D, BK):
            stage = step % STAGES
            mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
            ready = full.index(stage)
            if GATHERS:
                mbarrier.expect(ready, WEIGHTS_BYTES)
                gather_rows(x_ptr, tokens, row + rows < end, k, lanes, D, a.index(stage))
                async_copy.mbarrier_arrive(ready, increment_count=False)
            else:
                mbarrier.expect(ready, x.block_type.nbytes + WEIGHTS_BYTES)
                tma.async_copy_global_to_shared(x, [row, k], ready, a.index(stage))
            halves = b.index(stage)._reinterpret(gl.bfloat16, [2, BK, HALF], w_up.layout)
            tma.async_copy_global_to_shared(w_up, [expert * D + k, column], ready, halves.index(0))
            tma.async_copy_global_to_shared(
                w_gate, [expert * D + k, column], ready, halves.index(1)
            )
            step += 1
        expert, row, end = next_expert, next_row, next_end
        if GATHERS:
            tokens = next_tokens


@gluon.jit
def _multiply(
    a, b, sums, full, empty, written, taken, table_ptr, columns, D, GATHERS: gl.constexpr
):
    """Multiply the operands in stages that are full, and hand over the sums of each tile."""
    STAGES: gl.constexpr = a.shape[0]
    BM: gl.constexpr = a.shape[1]
    BK: gl.constexpr = a.shape[2]
    BN: gl.constexpr = b.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, BN // 2, 16])
    tiles, steps = gl.load(table_ptr) * columns, gl.cdiv(D, BK)
    first, turn = 0, 0
    for _ in range(gl.program_id(0), tiles, gl.num_programs(0)):
        block = gl.zeros([BM, BN], gl.float32, layout)
        for step in range(first, first + steps):
            stage = step % STAGES
            mbarrier.wait(full.index(stage), step // STAGES & 1)
            if GATHERS:
                fence_async_shared()
            block = warpgroup_mma(a.index(stage), b.index(stage), block, is_async=True)
            block = warpgroup_mma_wait(1, deps=[block])
            mbarrier.arrive(empty.index((step - 1) % STAGES), pred=step > first)
        block = warpgroup_mma_wait(0, deps=[block])
        first += steps
        mbarrier.arrive(empty.index((first - 1) % STAGES))
        hand_over(block, sums, written, taken, turn)
        turn += 1  # noqa: SIM113 (Gluon has no enumerate)


@gluon.jit
def _activate(sums, written, taken, pre_up, pre_gate, hidden_ptr, table_ptr, columns, F):
    """Store each tile's sums, which are the pre-activations, and their activation.

    The activation is computed from the stored sums, which are rounded to bfloat16, so that the
    backward pass recomputes exactly the same activation.
    """
    CHUNKS: gl.constexpr = sums.shape[0]
    BM: gl.constexpr = CHUNKS // 4 * CHUNK_ROWS
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    pieces = sums._reinterpret(gl.bfloat16, [4, BM, WIDTH], sums.layout)
    tiles = gl.load(table_ptr) * columns
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        _, row, end = find(table_ptr, tile, tiles, columns)
        column = tile % columns * (2 * WIDTH)
        mbarrier.wait(written.index(0), turn & 1)
        store_rows(pre_up, end, row, column, pieces.index(0))
        store_rows(pre_up, end, row, column + WIDTH, pieces.index(1))
        store_rows(pre_gate, end, row, column, pieces.index(2))
        store_rows(pre_gate, end, row, column + WIDTH, pieces.index(3))
        for chunk in range(0, CHUNKS // 2):
            up_block = sums.index(chunk).load(layout).to(gl.float32)
            gate_block = sums.index(chunk + CHUNKS // 2).load(layout).to(gl.float32)
            hidden = (up_block * gate_block * sigmoid(gate_block)).to(gl.bfloat16)
            rows = (
                row
                + chunk % (CHUNKS // 4) * CHUNK_ROWS
                + gl.arange(0, CHUNK_ROWS, layout=gl.SliceLayout(1, layout))
            )
            lanes = (
                column
                + chunk // (CHUNKS // 4) * WIDTH
                + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
            )
            place = hidden_ptr + rows[:, None].to(gl.int64) * F + lanes[None, :]
            gl.store(place, hidden, mask=(rows < end)[:, None] & (lanes < F)[None, :])
        tma.store_wait(0)
        barrier()
        mbarrier.arrive(taken.index(0))
        turn += 1  # noqa: SIM113
