# Gluon's compiler gives the values in a kernel other types than pyright infers for them.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportReturnType=false
"""The gradients of SwiGLU's weights, written by hand for Hopper.

Four warps fetch: the vectors of the tokens are gathered, which the copy engine of Hopper cannot
do, and the other operand is copied by the engine. Two groups of four warps multiply, as in
product.py. All tiles are in one launch, those of up and gate first. Each multiprocessor runs one
program, and the programs take the tiles in turns.
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
    WIDTH,
    barriers,
    gather_rows,
    keep,
    load_tokens,
    ragged,
    stack,
)
from moebius.kernels.launch import launch
from moebius.kernels.order import Order
from moebius.kernels.tiles import ROWS, Tile, multiprocessors

# Registers per thread: for all warps at the start, then for a group that multiplies, and for the
# warps that fetch.
REGISTERS, GROUP_REGISTERS, PRODUCER_REGISTERS = 168, 208, 80


def weight_gradients(
    x_TD: Tensor,
    pre_grad_PRF: Tensor,
    hidden_RF: Tensor,
    grad_TD: Tensor,
    order: Order,
    num_experts: int,
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `weight_gradient.weight_gradients` returns, for SwiGLU."""
    E, D, F = num_experts, x_TD.shape[1], hidden_RF.shape[1]
    w_up_grad, w_gate_grad = x_TD.new_empty(E, D, F), x_TD.new_empty(E, D, F)
    w_down_grad = x_TD.new_empty(E, F, D)
    wide = [
        ragged(rows_RF, tile.k, BN // 2)
        for rows_RF in (pre_grad_PRF[0], pre_grad_PRF[1], hidden_RF)
    ]
    outputs = [stack(grad, BM // 2, WIDTH.value) for grad in (w_up_grad, w_gate_grad, w_down_grad)]
    launch(
        _hopper_weights, (multiprocessors(x_TD.device),), x_TD, grad_TD, *wide, *outputs,
        order.assignment_R, order.start, D, F, E, order.row_TK.shape[1],
        BM, BN, tile.k, tile.stages, GROUP_REGISTERS, PRODUCER_REGISTERS,
        num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
    return w_up_grad, w_gate_grad, w_down_grad


@gluon.jit
def _hopper_weights(
    x_ptr, grad_ptr, up_grad, gate_grad, hidden, w_up, w_gate, w_down, assignment_ptr, start_ptr,
    D, F, E, SLOTS: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
    GROUP: gl.constexpr, PRODUCER: gl.constexpr,
):  # fmt: skip
    """Allocate shared memory and barriers, and give the warps their roles.

    A step's operands are BM columns of one matrix, in a half for each group, and BN columns of
    the other, or of two others. They are kept in pieces of WIDTH columns.
    """
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    a = gl.allocate_shared_memory(gl.bfloat16, [BM // WIDTH * STAGES, BK, WIDTH], layout)
    b = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BK, BN], layout)
    sums = gl.allocate_shared_memory(gl.bfloat16, [2 * BN // WIDTH, BM // 2, WIDTH], layout)
    # Each of the 128 threads that gather reports that its copies have arrived.
    full, empty, ahead = barriers(STAGES, 129), barriers(STAGES, 2), barriers(1)
    gl.warp_specialize(
        [
            (
                _multiply,
                (a, b, sums, full, empty, ahead, w_up, w_gate, w_down, start_ptr, D, F, E, 0),
            ),
            (
                _multiply,
                (a, b, sums, full, empty, ahead, w_up, w_gate, w_down, start_ptr, D, F, E, 1),
            ),
            (
                _fetch,
                (
                    x_ptr, grad_ptr, up_grad, gate_grad, hidden, a, b, full, empty,
                    assignment_ptr, start_ptr, D, F, E, SLOTS,
                ),
            ),
        ],
        [4, 4],
        [GROUP, PRODUCER],
    )  # fmt: skip


@gluon.jit
def _find(tile, start_ptr, D, F, E, BM: gl.constexpr, BN: gl.constexpr):
    """Return which matrix a tile belongs to, its place in the matrix, and its expert's rows.

    The results are: whether it is a tile of up and gate (BM rows by BN / 2 columns of both) and
    not of down (BM rows by BN columns); the expert; the tile's first row and column; and the
    first of the expert's rows and their end. A tile past the last one gets the last one's values.
    Consecutive tiles share the columns of the wider operand, which is then more likely to be in
    the cache.
    """
    up_rows = gl.cdiv(D, BM)
    up_tiles = up_rows * gl.cdiv(F, BN // 2)
    down_columns = gl.cdiv(D, BN)
    down_tiles = gl.cdiv(F, BM) * down_columns
    tile = gl.minimum(tile, E * (up_tiles + down_tiles) - 1)
    is_up = tile < E * up_tiles
    index = gl.where(is_up, tile, tile - E * up_tiles)
    per_expert = gl.where(is_up, up_tiles, down_tiles)
    expert = index // per_expert
    index = index % per_expert
    row = gl.where(is_up, index % up_rows, index // down_columns) * BM
    column = gl.where(is_up, index // up_rows * (BN // 2), index % down_columns * BN)
    return is_up, expert, row, column, gl.load(start_ptr + expert), gl.load(start_ptr + expert + 1)


@gluon.jit
def _count_tiles(D, F, E, BM: gl.constexpr, BN: gl.constexpr):
    """Return the number of tiles of all matrices."""
    return E * (gl.cdiv(D, BM) * gl.cdiv(F, BN // 2) + gl.cdiv(F, BM) * gl.cdiv(D, BN))


@gluon.jit
def _fetch(
    x_ptr, grad_ptr, up_grad, gate_grad, hidden, a, b, full, empty, assignment_ptr, start_ptr,
    D, F, E, SLOTS: gl.constexpr,
):  # fmt: skip
    """Copy the operands of each step into a stage that is empty, BK rows of an expert a step."""
    STAGES: gl.constexpr = b.shape[0]
    BK: gl.constexpr = b.shape[1]
    BN: gl.constexpr = b.shape[2]
    WIDTH: gl.constexpr = a.shape[2]
    PIECES: gl.constexpr = a.shape[0] // STAGES
    BM: gl.constexpr = PIECES * WIDTH
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    rows = gl.arange(0, BK, layout=gl.SliceLayout(1, layout))
    lanes = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
    left = a._reinterpret(gl.bfloat16, [STAGES, 1, 1, BK, BM], hidden.layout)
    halves = b._reinterpret(gl.bfloat16, [2 * STAGES, 1, 1, BK, BN // 2], hidden.layout)
    pieces = b._reinterpret(gl.bfloat16, [BN // WIDTH * STAGES, BK, WIDTH], a.layout)
    step = 0
    tiles = _count_tiles(D, F, E, BM, BN)
    is_up, _, m, n, start, end = _find(gl.program_id(0), start_ptr, D, F, E, BM, BN)
    tokens, second, third, fourth = _load_four(assignment_ptr, start, end, rows, BK, SLOTS)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        # A load returns only after the copies that were started before it. So the next tile's
        # place and its first tokens are loaded before this tile's copies are started. That tokens
        # are loaded four steps ahead has not been seen to help.
        next_is_up, _, next_m, next_n, next_start, next_end = _find(
            tile + gl.num_programs(0), start_ptr, D, F, E, BM, BN
        )
        next_first, next_second, next_third, next_fourth = _load_four(
            assignment_ptr, next_start, next_end, rows, BK, SLOTS
        )
        for row in range(start, end, BK):
            fifth = load_tokens(assignment_ptr, row + 4 * BK, end, rows, SLOTS)
            wanted = row + rows < end
            stage = step % STAGES
            mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
            ready = full.index(stage)
            if is_up:
                mbarrier.expect(ready, up_grad.block_type.nbytes + gate_grad.block_type.nbytes)
                _copy_rows(up_grad, end, row, n, ready, halves.index(2 * stage))
                _copy_rows(gate_grad, end, row, n, ready, halves.index(2 * stage + 1))
                for piece in gl.static_range(PIECES):
                    gather_rows(
                        x_ptr, tokens, wanted, m + piece * WIDTH, lanes, D,
                        a.index(PIECES * stage + piece),
                    )  # fmt: skip
            else:
                mbarrier.expect(ready, hidden.block_type.nbytes)
                _copy_rows(hidden, end, row, m, ready, left.index(stage))
                for piece in gl.static_range(BN // WIDTH):
                    gather_rows(
                        grad_ptr, tokens, wanted, n + piece * WIDTH, lanes, D,
                        pieces.index(BN // WIDTH * stage + piece),
                    )  # fmt: skip
            async_copy.mbarrier_arrive(ready, increment_count=False)
            tokens, second, third, fourth = second, third, fourth, fifth
            step += 1
        is_up, m, n, start, end = next_is_up, next_m, next_n, next_start, next_end
        tokens, second, third, fourth = next_first, next_second, next_third, next_fourth


@gluon.jit
def _load_four(assignment_ptr, row, end, rows, BK: gl.constexpr, SLOTS: gl.constexpr):
    """Return the tokens of the first four steps of a tile whose rows begin at `row`."""
    return (
        load_tokens(assignment_ptr, row, end, rows, SLOTS),
        load_tokens(assignment_ptr, row + BK, end, rows, SLOTS),
        load_tokens(assignment_ptr, row + 2 * BK, end, rows, SLOTS),
        load_tokens(assignment_ptr, row + 3 * BK, end, rows, SLOTS),
    )


@gluon.jit
def _copy_rows(source, end, row, column, ready, memory):
    """Start copying a block that begins at `row`; rows from `end` on are filled with zeros."""
    place = [ROWS, end, ROWS - end + row, column]
    tma.async_copy_global_to_shared(source, place, ready, memory)


@gluon.jit
def _multiply(
    a, b, sums, full, empty, ahead, w_up, w_gate, w_down, start_ptr, D, F, E, GROUP: gl.constexpr
):
    """Multiply one half of the rows of each tile, and store the product."""
    STAGES: gl.constexpr = b.shape[0]
    BK: gl.constexpr = b.shape[1]
    BN: gl.constexpr = b.shape[2]
    WIDTH: gl.constexpr = a.shape[2]
    BM: gl.constexpr = 2 * WIDTH
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    first = 0
    for tile in range(gl.program_id(0), _count_tiles(D, F, E, BM, BN), gl.num_programs(0)):
        is_up, expert, m, n, start, end = _find(tile, start_ptr, D, F, E, BM, BN)
        steps = gl.cdiv(end - start, BK)
        block = gl.zeros([WIDTH, BN], gl.float32, layout)
        if GROUP == 1:
            mbarrier.wait(ahead.index(0), 0, pred=(first == 0) & (steps > 0))
        for step in range(first, first + steps):
            stage = step % STAGES
            mbarrier.wait(full.index(stage), step // STAGES & 1)
            fence_async_shared()
            left = a.index(2 * stage + GROUP).permute((1, 0))
            block = warpgroup_mma(left, b.index(stage), block, is_async=True)
            block = warpgroup_mma_wait(1, deps=[block])
            mbarrier.arrive(empty.index((step - 1) % STAGES), pred=step > first)
            if GROUP == 0:
                is_ahead = (first == 0) & (step == gl.minimum(STAGES - 2, steps - 1))
                mbarrier.arrive(ahead.index(0), pred=is_ahead)
        block = warpgroup_mma_wait(0, deps=[block])
        first += steps
        mbarrier.arrive(empty.index((first - 1) % STAGES), pred=steps > 0)
        keep(block, sums, GROUP)
        m += GROUP * WIDTH
        if is_up:
            _store(w_up, expert, m, n, sums.index(4 * GROUP))
            _store(w_up, expert, m, n + WIDTH, sums.index(4 * GROUP + 1))
            _store(w_gate, expert, m, n, sums.index(4 * GROUP + 2))
            _store(w_gate, expert, m, n + WIDTH, sums.index(4 * GROUP + 3))
        else:
            for piece in gl.static_range(4):
                _store(w_down, expert, m, n + piece * WIDTH, sums.index(4 * GROUP + piece))
    tma.store_wait(0)


@gluon.jit
def _store(matrices, expert, row, column, memory):
    """Start storing a block of one expert's matrix from shared memory."""
    block = memory._reinterpret(
        memory.dtype, [1, memory.shape[0], memory.shape[1]], matrices.layout
    )
    tma.async_copy_shared_to_global(matrices, [expert, row, column], block)
