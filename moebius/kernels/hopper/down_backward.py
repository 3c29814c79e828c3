# Gluon's compiler gives the values in a kernel other types than pyright infers for them.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportReturnType=false
"""The backward pass of the down projection and of SwiGLU, written by hand for Hopper.

Eight warps fetch and multiply, and eight compute the derivative of SwiGLU. The derivative gets
half of the warps because it reads and writes five numbers for every number of the product. Unlike
in up.py, no warp only fetches, because that would take the registers of four warps away from the
others.
"""

import torch
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
    BK,
    BM,
    BN,
    CHUNK_ROWS,
    STAGES,
    WIDTH,
    barrier,
    barriers,
    blocks,
    find,
    gather_rows,
    hand_over,
    load_tokens,
    sigmoid,
)
from moebius.kernels.launch import cdiv, launch
from moebius.kernels.order import Order
from moebius.kernels.rows import sum_gate_gradients
from moebius.kernels.tiles import multiprocessors

# Registers per thread: for all warps at the start, then for the warps that differentiate.
REGISTERS, EPILOGUE_REGISTERS = 128, 96
# A piece of 64 columns is handled as 32 pairs of columns. Triton would keep every bfloat16 in a
# register of its own; two of them as one 32-bit integer take one register together.
PAIRS: gl.constexpr = gl.constexpr(32)


def down_backward(
    grad: Tensor,
    w_down_EFD: Tensor,
    pre_PRF: Tensor,
    gate_TK: Tensor,
    order: Order,
    gathers: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `backward.down_backward` returns, for SwiGLU without dropout.

    `grad` is grad_TD if the kernel `gathers` the rows, and grad_RD otherwise.
    """
    (E, F, D), R = w_down_EFD.shape, len(order.assignment_R)
    pre_grad_PRF, hidden_RF = torch.empty_like(pre_PRF), torch.empty_like(pre_PRF[0])
    partial_NR = torch.empty(cdiv(F, WIDTH.value), R, dtype=torch.float32, device=grad.device)
    launch(
        _hopper_down_backward, (multiprocessors(grad.device),), blocks(grad, BM, BK), grad,
        blocks(w_down_EFD, BN, BK), pre_PRF[0], pre_PRF[1], pre_grad_PRF[0], pre_grad_PRF[1],
        hidden_RF, gate_TK, partial_NR, order.assignment_R, order.tiles, R, D, F, gathers,
        order.row_TK.shape[1], BM, BN, BK, STAGES, EPILOGUE_REGISTERS,
        num_warps=8, maxnreg=REGISTERS,
    )  # fmt: skip
    return pre_grad_PRF, hidden_RF, sum_gate_gradients(partial_NR, order, E)


@gluon.jit
def _hopper_down_backward(
    grad, grad_ptr, w_down, up_ptr, pre_gate_ptr, up_grad_ptr, pre_gate_grad_ptr, hidden_ptr,
    gate_ptr, partial_ptr, assignment_ptr, table_ptr, R, D, F,
    GATHERS: gl.constexpr, SLOTS: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
    EPILOGUE: gl.constexpr,
):  # fmt: skip
    """Allocate shared memory and barriers, and give the warps their roles.

    `full` says that a stage of operands has arrived; `written` and `taken` pass a tile's sums
    between the multiplying and the differentiating warps.
    """
    a = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BM, BK], grad.layout)
    b = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BN, BK], w_down.layout)
    sums = gl.allocate_shared_memory(
        gl.bfloat16, [4 * BM // CHUNK_ROWS, CHUNK_ROWS, WIDTH], gl.NVMMASharedLayout(128, 16, 2)
    )
    # Each of the 256 threads that gather reports that its copies have arrived.
    full = barriers(STAGES, 257 if GATHERS else 1)
    written, taken = barriers(1), barriers(1)
    columns = gl.cdiv(F, BN)
    pre = (_in_pairs(up_ptr), _in_pairs(pre_gate_ptr))
    results = (
        _in_pairs(up_grad_ptr),
        _in_pairs(pre_gate_grad_ptr),
        _in_pairs(hidden_ptr),
        partial_ptr,
    )
    gl.warp_specialize(
        [
            (
                _multiply,
                (
                    grad, grad_ptr, w_down, a, b, sums, full, written, taken, assignment_ptr,
                    table_ptr, columns, D, F, GATHERS, SLOTS,
                ),
            ),
            (
                _differentiate,
                (
                    sums, written, taken, pre, results, gate_ptr, assignment_ptr, table_ptr,
                    columns, R, F // 2,
                ),
            ),
        ],
        [8],
        [EPILOGUE],
    )  # fmt: skip


@gluon.jit
def _in_pairs(ptr):
    """Return a pointer to bfloat16 as a pointer to 32-bit integers, each of which holds two."""
    return ptr.to(gl.pointer_type(gl.int32), bitcast=True)


@gluon.jit
def _multiply(
    grad, grad_ptr, w_down, a, b, sums, full, written, taken, assignment_ptr, table_ptr,
    columns, D, F, GATHERS: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Multiply each tile, fetching STAGES - 1 steps ahead, and hand over its sums.

    Near the end of a tile, the fetched steps are already the first steps of the program's next
    tile.
    """
    STAGES: gl.constexpr = a.shape[0]
    BM: gl.constexpr = a.shape[1]
    BK: gl.constexpr = a.shape[2]
    BN: gl.constexpr = b.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, BN // 2, 16])
    source = (grad, grad_ptr, w_down)
    tiles, programs = gl.load(table_ptr) * columns, gl.num_programs(0)
    steps = gl.maximum(gl.cdiv(D, BK), STAGES - 1)  # columns from D on read as zero
    first, turn = 0, 0
    expert, row, end = find(table_ptr, gl.program_id(0), tiles, columns)
    tokens = _tokens(assignment_ptr, row, end, GATHERS, SLOTS, BM, BK)
    w_row = expert * F + gl.program_id(0) % columns * BN
    for ahead in gl.static_range(STAGES - 1):
        _fetch(
            source, a, b, full, ahead, row, tokens, w_row, ahead * BK, D,
            gl.program_id(0) < tiles, GATHERS,
        )  # fmt: skip
    for tile in range(gl.program_id(0), tiles, programs):
        expert, next_row, end = find(table_ptr, tile + programs, tiles, columns)
        next_tokens = _tokens(assignment_ptr, next_row, end, GATHERS, SLOTS, BM, BK)
        next_w_row = expert * F + (tile + programs) % columns * BN
        block = gl.zeros([BM, BN], gl.float32, layout)
        for step in range(first, first + steps):
            mbarrier.wait(full.index(step % STAGES), step // STAGES & 1)
            if GATHERS:
                fence_async_shared()
            block = warpgroup_mma(
                a.index(step % STAGES),
                b.index(step % STAGES).permute((1, 0)),
                block,
                is_async=True,
            )
            block = warpgroup_mma_wait(1, deps=[block])
            barrier()  # every warp has finished the step before, so its stage is free
            free = step + STAGES - 1
            is_next = free >= first + steps
            k = gl.where(is_next, free - first - steps, free - first) * BK
            _fetch(
                source, a, b, full, free, gl.where(is_next, next_row, row),
                gl.where(is_next, next_tokens, tokens), gl.where(is_next, next_w_row, w_row), k,
                D, (free < first + steps) | (tile + programs < tiles), GATHERS,
            )  # fmt: skip
        block = warpgroup_mma_wait(0, deps=[block])
        first += steps
        row, tokens, w_row = next_row, next_tokens, next_w_row
        hand_over(block, sums, written, taken, turn)
        turn += 1  # noqa: SIM113 (Gluon has no enumerate)


@gluon.jit
def _tokens(
    assignment_ptr, row, end,
    GATHERS: gl.constexpr, SLOTS: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr,
):  # fmt: skip
    """Return the tokens of a tile's rows, or `row` if they are not needed."""
    if GATHERS:
        layout: gl.constexpr = _gather_layout(BK)
        rows = gl.arange(0, BM, layout=gl.SliceLayout(1, layout))
        tokens = load_tokens(assignment_ptr, row, end, rows, SLOTS)
    else:
        tokens = row
    return tokens


@gluon.constexpr_function
def _gather_layout(BK):
    """Return the layout in which eight warps copy blocks of BK columns, 16 bytes a thread."""
    return gl.BlockedLayout([1, 8], [256 // BK, BK // 8], [8, 1], [1, 0])


@gluon.jit
def _fetch(source, a, b, full, step, row, tokens, w_row, k, D, wanted, GATHERS: gl.constexpr):
    """Start copying the operands of a step into its stage; do nothing unless `wanted`.

    `source` is the gradient as a descriptor and as a pointer, and the matrices.
    """
    stage = step % a.shape[0]
    ready = full.index(stage)
    grad, grad_ptr, w_down = source
    if GATHERS:
        mbarrier.expect(ready, w_down.block_type.nbytes, wanted)
        if wanted:
            layout: gl.constexpr = _gather_layout(a.shape[2])
            lanes = gl.arange(0, a.shape[2], layout=gl.SliceLayout(0, layout))
            gather_rows(grad_ptr, tokens, tokens >= 0, k, lanes, D, a.index(stage))
            async_copy.mbarrier_arrive(ready, increment_count=False)
    else:
        mbarrier.expect(ready, grad.block_type.nbytes + w_down.block_type.nbytes, wanted)
        tma.async_copy_global_to_shared(grad, [row, k], ready, a.index(stage), wanted)
    tma.async_copy_global_to_shared(w_down, [w_row, k], ready, b.index(stage), wanted)


@gluon.jit
def _differentiate(
    sums, written, taken, pre, results, gate_ptr, assignment_ptr, table_ptr, columns, R, F
):
    """Turn the sums of each tile into gradients; F counts pairs of columns here.

    A tile has four pieces of columns. While three of them are processed, the next pre-activations
    of the fourth are being loaded.
    """
    PARTS: gl.constexpr = sums.shape[0] // 4
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [8, 1], [1, 0])
    chunks = sums._reinterpret(
        gl.int32, [4 * PARTS, CHUNK_ROWS, PAIRS], gl.NVMMASharedLayout(128, 32, 2)
    )
    tiles, programs = gl.load(table_ptr) * columns, gl.num_programs(0)
    _, first, end = find(table_ptr, gl.program_id(0), tiles, columns)
    column = gl.program_id(0) % columns * (4 * PAIRS)
    up0, gate0 = _load(pre, first, end, column, F, layout)
    up1, gate1 = _load(pre, first, end, column + PAIRS, F, layout)
    up2, gate2 = _load(pre, first, end, column + 2 * PAIRS, F, layout)
    up3, gate3 = _load(pre, first, end, column + 3 * PAIRS, F, layout)
    next_scale = _scale(gate_ptr, assignment_ptr, first, end, layout)
    turn = 0
    for tile in range(gl.program_id(0), tiles, programs):
        _, first, end = find(table_ptr, tile, tiles, columns)
        _, next_first, next_end = find(table_ptr, tile + programs, tiles, columns)
        column = tile % columns * (4 * PAIRS)
        next_column = (tile + programs) % columns * (4 * PAIRS)
        mbarrier.wait(written.index(0), turn & 1)
        for part in range(0, PARTS):
            is_last = part == PARTS - 1
            row = first + part * CHUNK_ROWS
            then_row = gl.where(is_last, next_first, first + (part + 1) * CHUNK_ROWS)
            then_end = gl.where(is_last, next_end, end)
            then_column = gl.where(is_last, next_column, column)
            scale = next_scale
            next_scale = _scale(gate_ptr, assignment_ptr, then_row, then_end, layout)
            _chunk(chunks.index(part), up0, gate0, scale, results, row, end, column, R, F, layout)
            up0, gate0 = _load(pre, then_row, then_end, then_column, F, layout)
            _chunk(
                chunks.index(part + PARTS), up1, gate1, scale, results, row, end,
                column + PAIRS, R, F, layout,
            )  # fmt: skip
            up1, gate1 = _load(pre, then_row, then_end, then_column + PAIRS, F, layout)
            _chunk(
                chunks.index(part + 2 * PARTS), up2, gate2, scale, results, row, end,
                column + 2 * PAIRS, R, F, layout,
            )  # fmt: skip
            up2, gate2 = _load(pre, then_row, then_end, then_column + 2 * PAIRS, F, layout)
            _chunk(
                chunks.index(part + 3 * PARTS), up3, gate3, scale, results, row, end,
                column + 3 * PAIRS, R, F, layout,
            )  # fmt: skip
            up3, gate3 = _load(pre, then_row, then_end, then_column + 3 * PAIRS, F, layout)
        barrier()
        mbarrier.arrive(taken.index(0))
        turn += 1  # noqa: SIM113


@gluon.jit
def _load(pre, row, end, column, F, layout: gl.constexpr):
    """Return the pre-activations of up and gate for a chunk, as pairs."""
    place, inside = _place(row, end, column, F, layout)
    up = gl.load(pre[0] + place, mask=inside, other=0)
    gate = gl.load(pre[1] + place, mask=inside, other=0)
    return up, gate


@gluon.jit
def _place(row, end, column, F, layout: gl.constexpr):
    """Return the offsets of a chunk's pairs in memory, and which of them exist."""
    rows = gl.arange(0, CHUNK_ROWS, layout=gl.SliceLayout(1, layout))
    lanes = gl.arange(0, PAIRS, layout=gl.SliceLayout(0, layout))
    inside = (rows < end - row)[:, None] & (lanes < F - column)[None, :]
    return row.to(gl.int64) * F + column + rows[:, None] * F + lanes[None, :], inside


@gluon.jit
def _scale(gate_ptr, assignment_ptr, row, end, layout: gl.constexpr):
    """Return the router's gates of a chunk's rows, as a column."""
    rows = row + gl.arange(0, CHUNK_ROWS, layout=gl.SliceLayout(1, layout))
    return gl.load(gate_ptr + gl.load(assignment_ptr + rows, mask=rows < end, other=0)).to(
        gl.float32
    )[:, None]


@gluon.jit
def _chunk(memory, up, gate, scale, results, row, end, column, R, F, layout: gl.constexpr):
    """Differentiate one chunk: CHUNK_ROWS rows of one piece of columns.

    `memory` holds the chunk's sums, `scale` the router's gates, and `results` the pointers to the
    four results.
    """
    grad = memory.load(layout)
    part, up_grad, gate_grad, hidden = _swiglu_backward(
        _first(grad), _first(up), _first(gate), scale
    )
    part2, up_grad2, gate_grad2, hidden2 = _swiglu_backward(
        _second(grad), _second(up), _second(gate), scale
    )
    place, inside = _place(row, end, column, F, layout)
    gl.store(results[0] + place, _pair(up_grad, up_grad2), mask=inside)
    gl.store(results[1] + place, _pair(gate_grad, gate_grad2), mask=inside)
    gl.store(results[2] + place, _pair(hidden, hidden2), mask=inside)
    rows = row + gl.arange(0, CHUNK_ROWS, layout=gl.SliceLayout(1, layout))
    partial = results[3] + column // PAIRS * gl.cast(R, gl.int64) + rows
    gl.store(partial, gl.sum(part + part2, axis=1), mask=(rows < end) & (column < F))


@gluon.jit
def _swiglu_backward(grad, up, gate, scale):
    """Return the terms of the router's gradient, the gradients of up and gate, and the activation.

    The last three results are multiplied by `scale`, the router's gate. The sum of the first over
    the columns is the gradient of that gate.
    """
    sigmoid_gate = sigmoid(gate)
    silu = gate * sigmoid_gate
    hidden = silu * up
    scaled = grad * scale
    return (
        grad * hidden,
        scaled * silu,
        scaled * up * ((sigmoid_gate + silu) - silu * sigmoid_gate),
        hidden * scale,
    )


@gluon.jit
def _first(pair):
    """Return the first of the two bfloat16 in each 32-bit integer, as float32."""
    return (pair << 16).to(gl.float32, bitcast=True)


@gluon.jit
def _second(pair):
    """Return the second of the two bfloat16 in each 32-bit integer, as float32."""
    return (pair & -65536).to(gl.float32, bitcast=True)


@gluon.jit
def _pair(first, second):
    """Round two float32 to bfloat16, and return both in one 32-bit integer."""
    return gl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f", [second, first], gl.int32, True, 1
    )
