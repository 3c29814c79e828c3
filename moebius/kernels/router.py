# Triton's functions raise outside of a kernel, so pyright believes that they never return.
# pyright: reportGeneralTypeIssues=false
"""The router's linear layer, whose product is so narrow that only reading x takes time.

Arithmetic is as exact as float32, except where the tokens are kept in bfloat16: there gradients
are exact to 16 bits. Tensor cores multiply several times, by each half of a number.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.launch import cdiv, launch, power_of_2
from moebius.kernels.operators import Differentiable

WIDEST = 64  # columns of logits; torch's products are faster for more
FEW_EXPERTS, ROW, TOKENS = 8, 2048, 4  # experts and columns whose products need no tensor cores
NARROW = 32  # columns of logits that leave room for large blocks of x
PROGRAMS = 264  # about two on each multiprocessor of an H100
SLICES = 64  # most parts of the tokens whose weight gradients are added up in the end
BLOCK = 64  # of the sum of these parts
PARTIAL = 4096  # experts times slices, so that these parts stay small beside x


def logits(x_TD: Tensor, weight_ED: Tensor, kept_TD: Tensor | None = None) -> Tensor:
    """Return logits_TE = x @ weight.T / sqrt(D) in float32.

    x_TD: of any floating-point dtype up to float32.
    kept_TD: the same values in the dtype in which they are kept for the backward pass, and in
    which their gradient is computed; its gradient takes the place of x_TD's.
    """
    kept_TD = x_TD if kept_TD is None else kept_TD
    return _LOGITS(x_TD.detach(), kept_TD, weight_ED)[0]


def _forward(x_TD: Tensor, kept_TD: Tensor, weight_ED: Tensor) -> list[Tensor]:
    x_TD, weight_ED = x_TD.contiguous(), weight_ED.contiguous()
    (T, D), E = x_TD.shape, len(weight_ED)
    logits_TE = torch.empty(T, E, dtype=torch.float32, device=x_TD.device)
    if E <= FEW_EXPERTS and D <= ROW:
        launch(
            _few_logits, (cdiv(T, TOKENS),), x_TD, weight_ED, logits_TE, T, D, D**-0.5,
            E, TOKENS, power_of_2(D), num_warps=4,
        )  # fmt: skip
        return [logits_TE]
    width = _width(E)
    if width > WIDEST:
        return [torch.mm(x_TD.float(), weight_ED.float().T).mul_(D**-0.5)]
    block = _forward_block(width)
    launch(
        _logits, (cdiv(T, block.tokens),), x_TD, weight_ED, logits_TE, T, D, E, D**-0.5,
        block.tokens, block.columns, width, num_warps=block.warps, num_stages=block.stages,
    )  # fmt: skip
    return [logits_TE]


def _empty_forward(x_TD: Tensor, kept_TD: Tensor, weight_ED: Tensor) -> list[Tensor]:
    return [x_TD.new_empty(len(x_TD), len(weight_ED), dtype=torch.float32)]


def _backward(grad_TE: Tensor, x_TD: Tensor, weight_ED: Tensor) -> list[Tensor]:
    """Return the gradients of x_TD, in its dtype, and of the weight."""
    grad_TE, x_TD, weight_ED = (t.contiguous() for t in (grad_TE, x_TD, weight_ED))
    (T, D), E = x_TD.shape, len(weight_ED)
    width = _width(E)
    if width > WIDEST:
        return _wide_backward(grad_TE * D**-0.5, x_TD, weight_ED.float())
    block = _backward_block(width, x_TD.dtype)
    programs, blocks = cdiv(D, block.columns), cdiv(T, block.tokens)
    slices = min(SLICES, cdiv(PROGRAMS, programs), PARTIAL // width, blocks)
    tokens_per_slice = cdiv(blocks, slices) * block.tokens
    x_grad_TD = torch.empty_like(x_TD)
    partial_XED = torch.empty(slices, E, D, dtype=torch.float32, device=x_TD.device)
    weight_grad_ED = torch.empty(E, D, dtype=torch.float32, device=x_TD.device)
    launch(
        _logits_backward, (programs, slices), grad_TE, x_TD, weight_ED, x_grad_TD,
        partial_XED, T, D, E, D**-0.5, tokens_per_slice,
        block.tokens, block.columns, width, num_warps=block.warps, num_stages=block.stages,
    )  # fmt: skip
    launch(
        _add_slices, (cdiv(E * D, BLOCK),), partial_XED, weight_grad_ED, slices, E * D,
        power_of_2(slices), BLOCK,
    )  # fmt: skip
    return [x_grad_TD, weight_grad_ED]


def _wide_backward(grad_TE: Tensor, x_TD: Tensor, weight_ED: Tensor) -> list[Tensor]:
    """Return the gradients by torch's products, of halves if the tokens are in bfloat16."""
    if x_TD.dtype != torch.bfloat16:
        return [(grad_TE @ weight_ED).to(x_TD.dtype), grad_TE.T @ x_TD.float()]
    (high, low), (weight_high, weight_low) = _two_halves(grad_TE), _two_halves(weight_ED)
    x_grad_TD = torch.cat([high, low, high], dim=1) @ torch.cat(
        [weight_high, weight_high, weight_low]
    )
    both = torch.cat([high, low], dim=1).T
    if x_TD.is_cuda:
        partial = torch.mm(both, x_TD, out_dtype=torch.float32)
    else:
        partial = both.float() @ x_TD.float()
    return [x_grad_TD, partial.unflatten(0, (2, -1)).sum(dim=0)]


def _two_halves(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return two bfloat16 matrices whose sum has 16 of the bits of a float32 matrix."""
    high = matrix.bfloat16()
    return high, (matrix - high).bfloat16()


def _empty_backward(grad_TE: Tensor, x_TD: Tensor, weight_ED: Tensor) -> list[Tensor]:
    return [x_TD.new_empty(x_TD.shape), x_TD.new_empty(weight_ED.shape, dtype=torch.float32)]


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    _, kept_TD, weight_ED = inputs
    ctx.save_for_backward(kept_TD, weight_ED)


def _gradients(ctx: Any, grad_TE: Tensor, run: Any) -> tuple[Tensor | None, ...]:
    kept_TD, weight_ED = ctx.saved_tensors
    x_grad_TD, weight_grad_ED = run(grad_TE, kept_TD, weight_ED)
    return None, x_grad_TD, weight_grad_ED.to(weight_ED.dtype)


_LOGITS = Differentiable(
    "router_logits", (_forward, _empty_forward), (_backward, _empty_backward), _save, _gradients
)


class _Block(NamedTuple):
    """The block of x that one step reads, and the resources for it."""

    tokens: int
    columns: int
    warps: int
    stages: int


def _forward_block(width: int) -> _Block:
    """Return the fastest block for logits of this width.

    It is the fastest of ten for 4, 32 and 64 experts on an H100, among those that fit a GPU with
    99 KB of shared memory.
    """
    return _Block(128, 64, 8, 3) if width <= NARROW else _Block(128, 32, 4, 3)


def _backward_block(width: int, dtype: torch.dtype) -> _Block:
    """Return the fastest block for gradients, as `_forward_block` does."""
    if width <= NARROW and dtype == torch.bfloat16:
        return _Block(64, 128, 4, 4 if width < NARROW else 3)
    return _Block(64, 64, 4, 2)


def _width(num_experts: int) -> int:
    """Return the columns of a block of logits: at least 16, for the tensor cores."""
    return max(16, power_of_2(num_experts))


@triton.jit
def _few_logits(
    x_ptr, weight_ptr, out_ptr, T, D, scale,
    EXPERTS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Compute the logits of a few whole tokens, which stay in registers."""
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    column = tl.arange(0, BD)
    inside = (token < T)[:, None] & (column < D)[None, :]
    place = x_ptr + token[:, None].to(tl.int64) * D + column[None, :]
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    for expert in tl.static_range(EXPERTS):
        weight = tl.load(weight_ptr + expert * D + column, mask=column < D, other=0.0)
        logit = tl.sum(x * weight.to(tl.float32)[None, :], axis=1)
        tl.store(out_ptr + token * EXPERTS + expert, scale * logit, mask=token < T)


@triton.jit
def _logits(
    x_ptr, weight_ptr, out_ptr, T, D, E, scale,
    BT: tl.constexpr, BD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    expert = tl.arange(0, WIDTH)
    total = tl.zeros((BT, WIDTH), tl.float32)
    for first in range(0, D, BD):
        column = first + tl.arange(0, BD)
        x = tl.load(
            x_ptr + token[:, None].to(tl.int64) * D + column[None, :],
            mask=(token < T)[:, None] & (column < D)[None, :],
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + expert[None, :] * D + column[:, None],
            mask=(expert < E)[None, :] & (column < D)[:, None],
            other=0.0,
        )
        total = tl.dot(x.to(tl.float32), weight.to(tl.float32), total, input_precision="tf32x3")
    place = out_ptr + token[:, None] * E + expert[None, :]
    tl.store(place, total * scale, mask=(token < T)[:, None] & (expert < E)[None, :])


@triton.jit
def _logits_backward(
    grad_ptr, x_ptr, weight_ptr, x_grad_ptr, partial_ptr, T, D, E, scale, tokens_per_slice,
    BT: tl.constexpr, BD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute x's gradient and, over one slice of the tokens, the weight's, for some columns."""
    column = tl.program_id(0) * BD + tl.arange(0, BD)
    begin = tl.program_id(1) * tokens_per_slice
    expert = tl.arange(0, WIDTH)
    in_weight = (expert < E)[:, None] & (column < D)[None, :]
    weight = tl.load(
        weight_ptr + expert[:, None] * D + column[None, :], mask=in_weight, other=0.0
    ).to(tl.float32)
    IN_HALVES: tl.constexpr = x_ptr.dtype.element_ty == tl.bfloat16
    weight_high, weight_low = _halves(weight)
    total = tl.zeros((WIDTH, BD), tl.float32)
    for first in range(begin, tl.minimum(begin + tokens_per_slice, T), BT):
        token = first + tl.arange(0, BT)
        in_grad = (token < T)[:, None] & (expert < E)[None, :]
        grad = scale * tl.load(
            grad_ptr + token[:, None] * E + expert[None, :], mask=in_grad, other=0.0
        )
        in_x = (token < T)[:, None] & (column < D)[None, :]
        place = token[:, None].to(tl.int64) * D + column[None, :]
        x = tl.load(x_ptr + place, mask=in_x, other=0.0)
        if IN_HALVES:
            high, low = _halves(grad)
            x_grad = tl.dot(high, weight_high)
            x_grad = tl.dot(low, weight_high, x_grad)
            x_grad = tl.dot(high, weight_low, x_grad)
            total = tl.dot(high.T, x, total)
            total = tl.dot(low.T, x, total)
        else:
            x_grad = tl.dot(grad, weight, input_precision="tf32x3")
            total = tl.dot(grad.T, x.to(tl.float32), total, input_precision="tf32x3")
        tl.store(x_grad_ptr + place, x_grad.to(x_grad_ptr.dtype.element_ty), mask=in_x)
    place = partial_ptr + (tl.program_id(1) * E + expert[:, None]) * D + column[None, :]
    tl.store(place, total, mask=in_weight)


@triton.jit
def _halves(x):
    """Return two bfloat16 numbers for each number; their sum has 16 of its bits."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _add_slices(partial_ptr, out_ptr, slices, size, SLICES: tl.constexpr, BLOCK: tl.constexpr):
    """Add up the slices' weight gradients."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, SLICES)
    inside = (row < slices)[:, None] & (column < size)[None, :]
    place = partial_ptr + row[:, None] * size + column[None, :]
    total = tl.sum(tl.load(place, mask=inside, other=0.0), axis=0)
    tl.store(out_ptr + column, total, mask=column < size)
