# Triton's functions raise outside of a kernel, so pyright believes that they never return.
# pyright: reportGeneralTypeIssues=false
"""The statistics of a layer's routing, as moebius/moe/statistics.py defines them.

Every block of tokens is summed by one program, and the blocks' sums are added up in a fixed order,
without atomics, so their bits are the same every time.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.choice import block_of, load_logits, log_sigmoid, rankable, softmax
from moebius.kernels.launch import cdiv, launch
from moebius.kernels.operators import Differentiable

FIGURES = 8
"""Number of sums that are not one for each expert, in the order of `routing_sums`."""
ROWS, COLUMNS = 256, 16  # of the blocks' sums in one step of `_add_up`


def routing_sums(
    logits_TE: Tensor,
    gate_TK: Tensor,
    expert_TK: Tensor,
    bias_E: Tensor,
    groups: int,
    is_sigmoid: bool,
    drops: bool,
    vanished: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return probability_PE, squared_log_partition, chosen_PE, taken_E and the other figures.

    The figures are the sums over the tokens of entropy, gates, unrouted tokens, dropped
    assignments, logits that are not finite, tokens whose highest score is below `vanished`, and
    tokens. The first two results have a gradient.

    is_sigmoid: whether scores are sigmoids. drops: whether full experts drop tokens; each token
    then has one slot, and chose the expert with the highest biased score. Otherwise the tokens
    chose the experts that took them, and if there are as many slots as experts, each slot is one
    expert's. The number of tokens must be a multiple of `groups`.
    """
    E = logits_TE.shape[1]
    probability_PE, log_partition, counted = _SUMS(
        logits_TE,
        gate_TK.detach(),
        expert_TK,
        bias_E.detach(),
        groups,
        is_sigmoid,
        drops,
        vanished,
    )
    chosen, taken_E, figures = counted.detach().split([groups * E, E, FIGURES - 1])
    return probability_PE, log_partition, chosen.view(groups, E), taken_E, figures


def _forward(
    logits_TE: Tensor, gate_TK: Tensor, expert_TK: Tensor, bias_E: Tensor, groups: int,
    is_sigmoid: bool, drops: bool, vanished: float,
) -> list[Tensor]:  # fmt: skip
    logits_TE, gate_TK, expert_TK = (t.contiguous() for t in (logits_TE, gate_TK, expert_TK))
    (T, E), K = logits_TE.shape, gate_TK.shape[1]
    if T % groups:
        raise ValueError(f"{T} tokens cannot be divided into {groups} equal groups")
    tokens, width = block_of(E)
    in_group = T // groups
    blocks = cdiv(in_group, tokens)
    # A line for each block: each expert's probability, choices and tokens, then the figures.
    num_sums = 3 * E + FIGURES
    partial = logits_TE.new_empty(groups * blocks, num_sums)
    probability_PE, log_partition, counted = _empty_forward(
        logits_TE, gate_TK, gate_TK, bias_E, groups
    )
    launch(
        _sum_block, (blocks, groups), logits_TE, gate_TK, expert_TK, bias_E, partial,
        in_group, E, num_sums, 1 / math.log(max(E, 2)), vanished,
        K, K == E and not drops, is_sigmoid, drops, tokens, width,
    )  # fmt: skip
    launch(
        _add_up, (groups + 1, cdiv(num_sums, COLUMNS)), partial, probability_PE, log_partition,
        counted, groups, blocks, E, num_sums, ROWS, COLUMNS,
    )  # fmt: skip
    return [probability_PE, log_partition, counted]


def _empty_forward(
    logits_TE: Tensor, gate_TK: Tensor, expert_TK: Tensor, bias_E: Tensor, groups: int, *_: Any
) -> list[Tensor]:
    E = logits_TE.shape[1]
    shapes = ((groups, E), (), (groups * E + E + FIGURES - 1,))
    return [logits_TE.new_empty(shape) for shape in shapes]


def _backward(
    probability_grad_PE: Tensor, log_partition_grad: Tensor, logits_TE: Tensor, is_sigmoid: bool
) -> list[Tensor]:
    logits_TE = logits_TE.contiguous()
    (T, E), groups = logits_TE.shape, len(probability_grad_PE)
    tokens, width = block_of(E)
    logits_grad_TE = torch.empty_like(logits_TE)
    launch(
        _sum_block_backward, (cdiv(T, tokens),), probability_grad_PE.contiguous(),
        log_partition_grad, logits_TE, logits_grad_TE, T, T // groups, E,
        is_sigmoid, tokens, width,
    )  # fmt: skip
    return [logits_grad_TE]


def _empty_backward(
    probability_grad_PE: Tensor, log_partition_grad: Tensor, logits_TE: Tensor, is_sigmoid: bool
) -> list[Tensor]:
    return [logits_TE.new_empty(logits_TE.shape)]


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    logits_TE, *_, ctx.is_sigmoid, _, _ = inputs
    ctx.save_for_backward(logits_TE)


def _gradients(
    ctx: Any, probability_grad_PE: Tensor, log_partition_grad: Tensor, *_: Any, run: Any
) -> tuple[Tensor | None, ...]:
    (logits_TE,) = ctx.saved_tensors
    grads = run(probability_grad_PE, log_partition_grad, logits_TE, ctx.is_sigmoid)
    return grads[0], *(7 * [None])


_SUMS = Differentiable(
    "routing_sums", (_forward, _empty_forward), (_backward, _empty_backward), _save, _gradients
)


@triton.jit
def _sum_block(
    logits_ptr, gate_ptr, expert_ptr, bias_ptr, partial_ptr,
    in_group, E, num_sums, entropy_scale, vanished,
    K: tl.constexpr, SLOT_IS_EXPERT: tl.constexpr, IS_SIGMOID: tl.constexpr,
    DROPS: tl.constexpr, BT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sum up a block of one group's tokens."""
    in_block = tl.program_id(0) * BT + tl.arange(0, BT)
    exists = in_block < in_group
    token = tl.program_id(1) * in_group + in_block
    expert = tl.arange(0, WIDTH)
    in_row = (expert < E)[None, :]
    inside = exists[:, None] & in_row
    logits = load_logits(logits_ptr, token, exists, expert, E)
    share, log_partition = softmax(logits)
    score = share
    if IS_SIGMOID:
        score = tl.sigmoid(logits)
        share, _ = softmax(log_sigmoid(logits))
    entropy = tl.where(share == 0.0, 0.0, -share * tl.log(share)) * entropy_scale

    if SLOT_IS_EXPERT:
        place = token[:, None] * E + expert[None, :]
        took = (tl.load(expert_ptr + place, mask=inside, other=E) < E).to(tl.int32)
        gate = tl.sum(tl.load(gate_ptr + place, mask=inside, other=0.0), axis=1)
    else:
        took = tl.zeros((BT, WIDTH), tl.int32)
        gate = tl.zeros((BT,), tl.float32)
        for slot in tl.static_range(K):  # unrolled, so that no load waits for another
            own = tl.load(expert_ptr + token * K + slot, mask=exists, other=E)
            took = tl.where(expert[None, :] == own[:, None], 1, took)
            gate += tl.load(gate_ptr + token * K + slot, mask=exists, other=0.0)
    took = tl.where(inside, took, 0)
    chose = took
    if DROPS:
        biased = score + tl.load(bias_ptr + expert, mask=expert < E, other=0.0)[None, :]
        own = tl.argmax(rankable(biased, in_row), axis=1)
        chose = (inside & (expert[None, :] == own[:, None])).to(tl.int32)
    is_unrouted = exists & (tl.sum(took, axis=1) == 0)
    # With drops, a token without an expert is one that a full expert refused.
    is_finite = tl.abs(logits) < float("inf")
    highest = tl.max(tl.where(score != score, 1.0, tl.where(inside, score, 0.0)), axis=1)
    is_vanished = exists & (highest < vanished)

    line = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    line_ptr = partial_ptr + line.to(tl.int64) * num_sums
    column_mask = expert < E
    tl.store(line_ptr + expert, tl.sum(tl.where(inside, share, 0.0), axis=0), mask=column_mask)
    tl.store(line_ptr + E + expert, tl.sum(chose, axis=0).to(tl.float32), mask=column_mask)
    tl.store(line_ptr + 2 * E + expert, tl.sum(took, axis=0).to(tl.float32), mask=column_mask)
    figure_ptr = line_ptr + 3 * E
    unrouted = tl.sum(is_unrouted.to(tl.float32))
    tl.store(figure_ptr, tl.sum(tl.where(inside, entropy, 0.0)))
    tl.store(figure_ptr + 1, tl.sum(tl.where(exists, gate, 0.0)))
    tl.store(figure_ptr + 2, unrouted)
    tl.store(figure_ptr + 3, unrouted if DROPS else 0.0)
    tl.store(figure_ptr + 4, tl.sum((inside & (is_finite == 0)).to(tl.float32)))
    tl.store(figure_ptr + 5, tl.sum(is_vanished.to(tl.float32)))
    tl.store(figure_ptr + 6, tl.sum(exists.to(tl.float32)))
    tl.store(figure_ptr + 7, tl.sum(tl.where(exists, log_partition * log_partition, 0.0)))


@triton.jit
def _add_up(
    partial_ptr, probability_ptr, log_partition_ptr, counted_ptr, groups, blocks, E, num_sums,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add up some columns of the blocks of one group or, in the last programs, of all groups."""
    group = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_total = group == groups
    begin = tl.where(is_total, 0, group * blocks)
    end = tl.where(is_total, groups * blocks, begin + blocks)
    wanted = (column < num_sums) & ((column >= 2 * E) == is_total)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        place = partial_ptr + row[:, None].to(tl.int64) * num_sums + column[None, :]
        total += tl.sum(tl.load(place, mask=(row < end)[:, None] & wanted[None, :], other=0.0), 0)
    is_last = column == num_sums - 1
    chosen = counted_ptr + group * E + column - E
    others = counted_ptr + groups * E + column - 2 * E
    tl.store(probability_ptr + group * E + column, total, mask=wanted & (column < E))
    tl.store(chosen, total, mask=wanted & (column >= E) & (column < 2 * E))
    tl.store(others, total, mask=wanted & (column >= 2 * E) & (is_last == 0))
    tl.store(log_partition_ptr + 0 * column, total, mask=wanted & is_last)


@triton.jit
def _sum_block_backward(
    probability_grad_ptr, log_partition_grad_ptr, logits_ptr, out_ptr, T, in_group, E,
    IS_SIGMOID: tl.constexpr, BT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    expert = tl.arange(0, WIDTH)
    exists = token < T
    inside = exists[:, None] & (expert < E)[None, :]
    logits = load_logits(logits_ptr, token, exists, expert, E)
    group = token // in_group
    grad = tl.load(
        probability_grad_ptr + group[:, None] * E + expert[None, :], mask=inside, other=0.0
    )
    share, log_partition = softmax(logits)
    out = 2.0 * tl.load(log_partition_grad_ptr) * log_partition[:, None] * share
    if IS_SIGMOID:
        share, _ = softmax(log_sigmoid(logits))
    mean = tl.sum(share * grad, axis=1)
    own = share * (grad - mean[:, None])
    out += own * tl.sigmoid(-logits) if IS_SIGMOID else own
    tl.store(out_ptr + token[:, None] * E + expert[None, :], out, mask=inside)
