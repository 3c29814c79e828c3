# Gluon's compiler gives the values in a kernel other types than pyright infers for them.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportReturnType=false
# Its branches are decided when a kernel is compiled, and then no variable is unbound.
# pyright: reportPossiblyUnboundVariable=false
"""A product of each expert's rows with its matrix, written by hand for Hopper.

Experts of a small width sum over few columns, so that the end of a tile comes often: its sums have
to be rounded and stored, and the tensor cores must not wait for that. Two groups of four warps
have half of the rows of each tile. The second one starts a few steps later, so that one group
multiplies while the other stores. One more warp fetches.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
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
    blocks,
    find,
    keep,
    ragged,
    store_rows,
)
from moebius.kernels.launch import launch
from moebius.kernels.order import Order
from moebius.kernels.tiles import Tile, multiprocessors

# Registers per thread: for all warps at the start, then for a group that multiplies, and for the
# warp that fetches.
REGISTERS, GROUP_REGISTERS, PRODUCER_REGISTERS = 168, 240, 24


def product(
    rows: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    is_transposed: bool,
    gate_TK: Tensor | None,
    order: Order,
    tile: Tile,
) -> Tensor:
    """Return out_RN: each row times its expert's matrix, summed over one or two such pairs.

    Each of `rows` has shape (R, K), and each of `weights` shape (E, K, N) or, if it
    `is_transposed`, (E, N, K). With `gate_TK`, each row of the result is multiplied by its gate.
    """
    R, K = rows[0].shape
    N = weights[0].shape[1 if is_transposed else 2]
    out_RN = rows[0].new_empty(R, N)
    block = (BN, tile.k) if is_transposed else (tile.k, BN)
    launch(
        _hopper_product, (multiprocessors(out_RN.device),),
        *(blocks(rows[pair], BM, tile.k) for pair in (0, -1)),
        *(blocks(weights[pair], *block) for pair in (0, -1)),
        ragged(out_RN, BM // 2, WIDTH.value), order.start if gate_TK is None else gate_TK,
        order.assignment_R, order.tiles, N, K, len(rows) == 2, is_transposed, gate_TK is not None,
        BM, BN, tile.k, tile.stages, GROUP_REGISTERS, PRODUCER_REGISTERS,
        num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
    return out_RN


@gluon.jit
def _hopper_product(
    left, left2, right, right2, out, gate_ptr, assignment_ptr, table_ptr, N, K,
    TWO: gl.constexpr, TRANSPOSED: gl.constexpr, GATED: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
    GROUP: gl.constexpr, PRODUCER: gl.constexpr,
):  # fmt: skip
    """Allocate shared memory and barriers, and give the warps their roles.

    `full` and `empty` pass the stages of operands between the fetching warp and the groups, and
    `ahead` says that the first group has its lead.
    """
    a = gl.allocate_shared_memory(gl.bfloat16, [2 * STAGES, BM // 2, BK], left.layout)
    shape: gl.constexpr = [STAGES, BN, BK] if TRANSPOSED else [STAGES, BK, BN]
    b = gl.allocate_shared_memory(gl.bfloat16, shape, right.layout)
    sums = gl.allocate_shared_memory(
        gl.bfloat16, [2 * BN // WIDTH, BM // 2, WIDTH], gl.NVMMASharedLayout(128, 16, 2)
    )
    full, empty, ahead = barriers(STAGES), barriers(STAGES, 2), barriers(1)
    columns = gl.cdiv(N, BN)
    steps = gl.cdiv(K, BK) * (2 if TWO else 1)
    gl.warp_specialize(
        [
            (
                _multiply,
                (
                    a, b, sums, full, empty, ahead, out, gate_ptr, assignment_ptr, table_ptr,
                    columns, steps, N, TRANSPOSED, GATED, BN, 0,
                ),
            ),
            (
                _multiply,
                (
                    a, b, sums, full, empty, ahead, out, gate_ptr, assignment_ptr, table_ptr,
                    columns, steps, N, TRANSPOSED, GATED, BN, 1,
                ),
            ),
            (
                _fetch,
                (
                    left, left2, right, right2, a, b, full, empty, table_ptr, columns, N, K, TWO,
                    TRANSPOSED, BM, BN, BK,
                ),
            ),
        ],
        [4, 1],
        [GROUP, PRODUCER],
    )  # fmt: skip


@gluon.jit
def _fetch(
    left, left2, right, right2, a, b, full, empty, table_ptr, columns, N, K,
    TWO: gl.constexpr, TRANSPOSED: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
):  # fmt: skip
    """Copy blocks of the rows and of the matrices into stages that are empty."""
    tiles = gl.load(table_ptr) * columns
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        expert, row, _ = find(table_ptr, tile, tiles, columns)
        column = _column(tile, columns) * BN
        for k in range(0, K, BK):
            _fetch_step(
                left, right, a, b, full, empty, step, expert, row, column, k, N, K, TRANSPOSED, BM
            )
            step += 1
        if TWO:
            for k in range(0, K, BK):
                _fetch_step(
                    left2, right2, a, b, full, empty, step, expert, row, column, k, N, K,
                    TRANSPOSED, BM,
                )  # fmt: skip
                step += 1


@gluon.jit
def _column(tile, columns):
    """Return the number of a tile's column.

    Tiles of the last column can be narrow and are then quick to compute. The order of the columns
    changes with every round of tiles, so that no program computes only these.
    """
    rows_at_once = gl.maximum(gl.num_programs(0) // columns, 1)
    return (tile % columns + tile // columns // rows_at_once) % columns


@gluon.jit
def _fetch_step(
    left, right, a, b, full, empty, step, expert, row, column, k, N, K,
    TRANSPOSED: gl.constexpr, BM: gl.constexpr,
):  # fmt: skip
    """Copy the operands of one step."""
    STAGES: gl.constexpr = b.shape[0]
    stage = step % STAGES
    mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
    ready = full.index(stage)
    mbarrier.expect(ready, left.block_type.nbytes + right.block_type.nbytes)
    both_halves = a._reinterpret(gl.bfloat16, [STAGES, BM, a.shape[2]], left.layout)
    tma.async_copy_global_to_shared(left, [row, k], ready, both_halves.index(stage))
    if TRANSPOSED:
        tma.async_copy_global_to_shared(right, [expert * N + column, k], ready, b.index(stage))
    else:
        tma.async_copy_global_to_shared(right, [expert * K + k, column], ready, b.index(stage))


@gluon.jit
def _multiply(
    a, b, sums, full, empty, ahead, out, gate_ptr, assignment_ptr, table_ptr, columns, steps, N,
    TRANSPOSED: gl.constexpr, GATED: gl.constexpr, BN: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """Multiply one half of the rows of each tile, and store the product.

    Of a tile that lies half or more outside of the matrix, only the left half is computed.
    """
    HALF: gl.constexpr = a.shape[1]
    tiles = gl.load(table_ptr) * columns
    first = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        _, row, end = find(table_ptr, tile, tiles, columns)
        row += GROUP * HALF
        column = _column(tile, columns) * BN
        if N - column > BN // 2:
            _multiply_tile(
                a, b, sums, full, empty, ahead, out, gate_ptr, assignment_ptr, row, end, column,
                first, steps, TRANSPOSED, GATED, BN, BN, GROUP,
            )  # fmt: skip
        else:
            _multiply_tile(
                a, b, sums, full, empty, ahead, out, gate_ptr, assignment_ptr, row, end, column,
                first, steps, TRANSPOSED, GATED, BN, BN // 2, GROUP,
            )  # fmt: skip
        first += steps
    tma.store_wait(0)


@gluon.jit
def _multiply_tile(
    a, b, sums, full, empty, ahead, out, gate_ptr, assignment_ptr, row, end, column, first, steps,
    TRANSPOSED: gl.constexpr, GATED: gl.constexpr, BN: gl.constexpr, WANTED: gl.constexpr,
    GROUP: gl.constexpr,
):  # fmt: skip
    """Multiply a group's rows of one tile, and store the first WANTED columns of the product."""
    STAGES: gl.constexpr = b.shape[0]
    HALF: gl.constexpr = a.shape[1]
    BK: gl.constexpr = a.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WANTED, 16])
    block = gl.zeros([HALF, WANTED], gl.float32, layout)
    # A stage of the right operand is seen as PARTS parts, of which only the first is multiplied.
    PARTS: gl.constexpr = BN // WANTED
    shape: gl.constexpr = (
        [PARTS * STAGES, WANTED, BK] if TRANSPOSED else [PARTS * STAGES, BK, WANTED]
    )
    parts = b._reinterpret(gl.bfloat16, shape, b.layout)
    if GATED:
        rows = row + gl.arange(0, HALF, layout=gl.SliceLayout(1, layout))
        assignment = gl.load(assignment_ptr + rows, mask=rows < end, other=0)
        gate = gl.load(gate_ptr + assignment).to(gl.float32)
    if GROUP == 1:
        mbarrier.wait(ahead.index(0), 0, pred=first == 0)
    for step in range(first, first + steps):
        stage = step % STAGES
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        part = parts.index(PARTS * stage)
        right = part.permute((1, 0)) if TRANSPOSED else part
        block = warpgroup_mma(a.index(2 * stage + GROUP), right, block, is_async=True)
        block = warpgroup_mma_wait(1, deps=[block])
        mbarrier.arrive(empty.index((step - 1) % STAGES), pred=step > first)
        if GROUP == 0:
            is_ahead = (first == 0) & (step == gl.minimum(STAGES - 2, steps - 1))
            mbarrier.arrive(ahead.index(0), pred=is_ahead)
    block = warpgroup_mma_wait(0, deps=[block])
    mbarrier.arrive(empty.index((first + steps - 1) % STAGES))
    if GATED:
        block *= gate[:, None]
    keep(block, sums, GROUP)
    for piece in gl.static_range(WANTED // WIDTH):
        store_rows(out, end, row, column + piece * WIDTH, sums.index(4 * GROUP + piece))
