# Triton's functions raise outside of a kernel, so pyright believes that they never return.
# pyright: reportGeneralTypeIssues=false
"""The choice of experts from logits: scores, bias, the best k, gates, and capacities.

Among experts with equal biased scores the one with the smallest number is chosen; with sigmoid
scores, the one with the largest logit, as in moebius/moe/router.py. A logit that is no number
counts as the highest.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import cdiv, launch, power_of_2
from moebius.kernels.operators import Differentiable

ENTRIES = 2048  # of a block of logits
EARLIER = 64  # blocks whose counts one step of `_drop` adds up
LOWEST: tl.constexpr = tl.constexpr(-3.0e38)


class Rule(NamedTuple):
    """How experts are chosen."""

    k: int
    """Experts per token; 0 for every expert whose biased score is above the threshold."""
    is_sigmoid: bool
    """Whether scores are sigmoids; otherwise they are a softmax."""
    renormalizes: bool
    """Whether a token's gates are divided by their sum."""
    scale: float
    """Factor on the gates."""
    threshold: float = 0.0
    """The biased score that an expert must exceed if k is 0."""
    capacity: int = -1
    """Most tokens that an expert takes, with k = 1; -1 for any number."""


def choose(logits_TE: Tensor, bias_E: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Return gate_TK and expert_TK, as the functions of moebius/moe/router.py do."""
    gate_TK, expert_TK = _CHOOSE(logits_TE, bias_E.detach(), *rule)
    return gate_TK, expert_TK


def block_of(num_experts: int) -> tuple[int, int]:
    """Return the tokens and the columns of a block of logits."""
    width = max(4, power_of_2(num_experts))
    return min(128, max(16, ENTRIES // width)), width


def _forward(
    logits_TE: Tensor, bias_E: Tensor, k: int, is_sigmoid: bool, renormalizes: bool,
    scale: float, threshold: float, capacity: int,
) -> list[Tensor]:  # fmt: skip
    logits_TE = logits_TE.contiguous()
    T, E = logits_TE.shape
    tokens, width = block_of(E)
    blocks = cdiv(T, tokens)
    gate_TK = logits_TE.new_empty(T, k or E)
    expert_TK = torch.empty(T, k or E, dtype=torch.int64, device=logits_TE.device)
    # Without capacities, nothing reads or writes the counts.
    count = expert_TK
    if capacity >= 0:
        count = torch.empty(blocks, width, dtype=torch.int32, device=logits_TE.device)
    launch(
        _choose, (blocks,), logits_TE, bias_E, gate_TK, expert_TK, count, T, E, scale, threshold,
        k, is_sigmoid, renormalizes, capacity >= 0, tokens, width,
    )  # fmt: skip
    if capacity >= 0:
        launch(
            _drop, (blocks,), gate_TK, expert_TK, count, T, E, capacity, tokens, width, EARLIER,
        )  # fmt: skip
    return [gate_TK, expert_TK]


def _empty_forward(logits_TE: Tensor, bias_E: Tensor, k: int, *_: Any) -> list[Tensor]:
    T, E = logits_TE.shape
    return [
        logits_TE.new_empty(T, k or E),
        logits_TE.new_empty(T, k or E, dtype=torch.int64),
    ]


def _backward(
    grad_TK: Tensor, logits_TE: Tensor, expert_TK: Tensor, k: int, is_sigmoid: bool,
    renormalizes: bool, scale: float,
) -> list[Tensor]:  # fmt: skip
    grad_TK, logits_TE = grad_TK.contiguous(), logits_TE.contiguous()
    T, E = logits_TE.shape
    tokens, width = block_of(E)
    logits_grad_TE = torch.empty_like(logits_TE)
    launch(
        _choose_backward, (cdiv(T, tokens),), grad_TK, logits_TE, expert_TK, logits_grad_TE,
        T, E, scale, k, is_sigmoid, renormalizes, tokens, width,
    )  # fmt: skip
    return [logits_grad_TE]


def _empty_backward(grad_TK: Tensor, logits_TE: Tensor, *_: Any) -> list[Tensor]:
    return [logits_TE.new_empty(logits_TE.shape)]


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    logits_TE, _, *ctx.rule = inputs
    ctx.save_for_backward(logits_TE, output[1])


def _gradients(ctx: Any, grad_TK: Tensor, *_: Any, run: Any) -> tuple[Tensor | None, ...]:
    (logits_grad_TE,) = run(grad_TK, *ctx.saved_tensors, *ctx.rule[:4])
    return logits_grad_TE, None, *(None for _ in ctx.rule)


_CHOOSE = Differentiable(
    "choose_experts", (_forward, _empty_forward), (_backward, _empty_backward), _save, _gradients
)


@triton.jit
def load_logits(logits_ptr, token, exists, expert, E):
    """Return a block of logits; those of other tokens and experts are minus infinity."""
    inside = exists[:, None] & (expert < E)[None, :]
    place = logits_ptr + token[:, None] * E + expert[None, :]
    return tl.load(place, mask=inside, other=float("-inf"))


@triton.jit
def log_sigmoid(x):
    """Return the logarithm of the sigmoid."""
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def softmax(x):
    """Return the softmax of each row, and its log-sum-exp."""
    largest = tl.max(x, axis=1)
    exp = tl.exp(x - largest[:, None])
    total = tl.sum(exp, axis=1)
    return exp / total[:, None], largest + tl.log(total)


@triton.jit
def rankable(x, exists):
    """Return finite numbers in the order of x, where `exists`; minus infinity elsewhere.

    No number counts as the highest, as in torch's sorts.
    """
    x = tl.where(x != x, float("inf"), x)
    return tl.where(exists, tl.maximum(x, LOWEST), float("-inf"))


@triton.jit
def _choose(
    logits_ptr, bias_ptr, gate_ptr, expert_ptr, count_ptr, T, E, scale, threshold,
    K: tl.constexpr, IS_SIGMOID: tl.constexpr, RENORMALIZES: tl.constexpr,
    COUNTS: tl.constexpr, BT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    expert = tl.arange(0, WIDTH)
    in_row = (expert < E)[None, :]
    exists = token < T
    logits = load_logits(logits_ptr, token, exists, expert, E)
    if IS_SIGMOID:
        probs = tl.sigmoid(logits)
    else:
        probs, _ = softmax(logits)
    biased = probs + tl.load(bias_ptr + expert, mask=expert < E, other=0.0)[None, :]
    if K == 0:
        is_active = biased > threshold
        place = token[:, None] * E + expert[None, :]
        inside = exists[:, None] & in_row
        chosen = tl.where(is_active, expert[None, :], E)
        tl.store(gate_ptr + place, tl.where(is_active, probs * scale, 0.0), mask=inside)
        tl.store(expert_ptr + place, chosen.to(tl.int64), mask=inside)
    else:
        left = rankable(biased, in_row)
        by_logit = rankable(logits, in_row)
        slot_of = tl.full((BT, WIDTH), -1, tl.int32)
        for slot in range(K):
            if IS_SIGMOID:
                best = tl.max(left, axis=1)[:, None]
                own = tl.argmax(tl.where(left == best, by_logit, float("-inf")), axis=1)
            else:
                own = tl.argmax(left, axis=1)
            is_own = expert[None, :] == own[:, None]
            slot_of = tl.where(is_own, slot, slot_of)
            left = tl.where(is_own, float("-inf"), left)
        is_chosen = slot_of >= 0
        gate = _share_of_chosen(logits, is_chosen, IS_SIGMOID) if RENORMALIZES else probs
        place = token[:, None] * K + slot_of
        inside = exists[:, None] & is_chosen
        tl.store(gate_ptr + place, gate * scale, mask=inside)
        tl.store(expert_ptr + place, (expert[None, :] + 0 * slot_of).to(tl.int64), mask=inside)
        if COUNTS:
            count = tl.sum(inside.to(tl.int32), axis=0)
            tl.store(count_ptr + tl.program_id(0) * WIDTH + expert, count)


@triton.jit
def _share_of_chosen(logits, is_chosen, IS_SIGMOID: tl.constexpr):
    """Return each chosen expert's score divided by the sum of the chosen ones' scores.

    Scores are normalized from their logarithms. Softmax scores are exp(logit) times a factor,
    which cancels.
    """
    if IS_SIGMOID:
        logits = log_sigmoid(logits)
    share, _ = softmax(tl.where(is_chosen, logits, float("-inf")))
    return share


@triton.jit
def _drop(
    gate_ptr, expert_ptr, count_ptr, T, E, capacity,
    BT: tl.constexpr, WIDTH: tl.constexpr, EARLIER: tl.constexpr,
):  # fmt: skip
    """Take the expert from tokens that come after the first `capacity` tokens that chose it."""
    block = tl.program_id(0)
    token = block * BT + tl.arange(0, BT)
    expert = tl.arange(0, WIDTH)
    before = tl.zeros((WIDTH,), tl.int32)
    for first in range(0, block, EARLIER):
        row = first + tl.arange(0, EARLIER)
        place = count_ptr + row[:, None] * WIDTH + expert[None, :]
        before += tl.sum(tl.load(place, mask=(row < block)[:, None], other=0), axis=0)
    chosen = tl.load(expert_ptr + token, mask=token < T, other=E)
    is_own = (chosen[:, None] == expert[None, :]).to(tl.int32)
    place = tl.sum(is_own * (before[None, :] + tl.cumsum(is_own, 0) - 1), axis=1)
    is_dropped = (token < T) & (place >= capacity)
    tl.store(gate_ptr + token, tl.zeros((BT,), tl.float32), mask=is_dropped)
    tl.store(expert_ptr + token, tl.zeros((BT,), tl.int64) + E, mask=is_dropped)


@triton.jit
def _choose_backward(
    grad_ptr, logits_ptr, expert_ptr, out_ptr, T, E, scale,
    K: tl.constexpr, IS_SIGMOID: tl.constexpr, RENORMALIZES: tl.constexpr,
    BT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    expert = tl.arange(0, WIDTH)
    exists = token < T
    inside = exists[:, None] & (expert < E)[None, :]
    logits = load_logits(logits_ptr, token, exists, expert, E)
    place = token[:, None] * E + expert[None, :]
    if K == 0:
        is_active = tl.load(expert_ptr + place, mask=inside, other=E) < E
        grad = tl.load(grad_ptr + place, mask=inside & is_active, other=0.0)
        is_chosen = is_active.to(tl.int32)
    else:
        grad = tl.zeros((BT, WIDTH), tl.float32)
        is_chosen = tl.zeros((BT, WIDTH), tl.int32)
        for slot in tl.static_range(K):  # unrolled, so that no load waits for another
            own = tl.load(expert_ptr + token * K + slot, mask=exists, other=E)
            own_grad = tl.load(grad_ptr + token * K + slot, mask=exists, other=0.0)
            is_own = expert[None, :] == own[:, None]
            grad = tl.where(is_own, own_grad[:, None], grad)
            is_chosen = tl.where(is_own, 1, is_chosen)
    grad *= scale
    if RENORMALIZES:
        share = _share_of_chosen(logits, is_chosen > 0, IS_SIGMOID)
        out = share * (grad - tl.sum(share * grad, axis=1)[:, None])
        if IS_SIGMOID:
            out *= tl.sigmoid(-logits)
    elif IS_SIGMOID:
        probs = tl.sigmoid(logits)
        out = grad * probs * (1.0 - probs)
    else:
        probs, _ = softmax(logits)
        out = probs * (grad - tl.sum(probs * grad, axis=1)[:, None])
    tl.store(out_ptr + place, out, mask=inside)
