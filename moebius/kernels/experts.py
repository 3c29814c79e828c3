"""The whole expert layer as one differentiable function of Triton kernels.

Saved for backward: x, the pre-activations, where each row lies. Not the activation, which costs less to compute again than to
keep, and not the experts' outputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moebius.kernels import backward as backward_kernels
from moebius.kernels import forward as forward_kernels
from moebius.kernels.activation import Between
from moebius.kernels.order import TILE_ROWS, Order, sort_by_expert
from moebius.kernels.rows import combine, gather
from moebius.kernels.tune import with_best_tile
from moebius.kernels.weight_gradient import weight_gradients


def run_experts(
    x_TD: Tensor, gate_TK: Tensor, expert_TK: Tensor, w_gate_EDF: Tensor | None, w_up_EDF: Tensor, w_down_EFD: Tensor,
    activation: str, dropout: float,
) -> Tensor:  # fmt: skip
    """out_TD: each token's gated sum over its experts; the id E is no expert.

    x and the weights in one dtype, bfloat16 or float32, D and F multiples of 8. activation: "swiglu", which alone has a
    gate, "relu2" or "gelu". dropout: of the hidden activations. The same bits each time, no host synchronisation.
    """
    seed = torch.randint(2**31 - 1, (1,), device=x_TD.device) if dropout else expert_TK.flatten()[:1]
    given = (x_TD, gate_TK, expert_TK, w_gate_EDF, w_up_EDF, w_down_EFD, seed, activation, dropout)
    return _forward_operator(*given)[0] if torch.compiler.is_compiling() else _Experts.apply(*given)


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    x_TD, gate_TK, _, *weights, seed, ctx.activation, ctx.dropout = inputs
    _, x_saved, pre_PRF, *order = output
    ctx.save_for_backward(x_saved if gate_TK.shape[1] == 1 else x_TD, gate_TK, *weights, seed, pre_PRF, *order)


def _gradients(ctx: Any, grad_TD: Tensor, run: Callable[..., list[Tensor]]) -> tuple[Tensor | None, ...]:
    x_saved, gate_TK, w_gate_EDF, *others = ctx.saved_tensors
    grads = run(grad_TD, x_saved, gate_TK, w_gate_EDF, *others, ctx.activation, ctx.dropout)
    x_grad, gate_grad, up_grad, down_grad, *w_gate_grad = grads
    return x_grad, gate_grad, None, w_gate_grad[0] if w_gate_EDF is not None else None, up_grad, down_grad, None, None, None


class _Experts(torch.autograd.Function):
    """As the compiler sees it through operators, which cost the host more."""

    @staticmethod
    def forward(ctx, *given):  # pyright: ignore[reportIncompatibleMethodOverride]
        output = _forward(*given)
        _save(ctx, given, output)
        return output[0]

    @staticmethod
    def backward(ctx, grad_TD):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gradients(ctx, grad_TD, _backward)


def _forward(
    x_TD: Tensor, gate_TK: Tensor, expert_TK: Tensor, w_gate_EDF: Tensor | None, w_up_EDF: Tensor, w_down_EFD: Tensor,
    seed: Tensor, activation: str, dropout: float,
) -> list[Tensor]:  # fmt: skip
    """out_TD, x_RD, pre_PRF, and the order's tensors."""
    w_gate_EDF = None if w_gate_EDF is None else _aligned(w_gate_EDF)
    w_up_EDF, w_down_EFD = _aligned(w_up_EDF), _aligned(w_down_EFD)
    gate_TK, shape = gate_TK.contiguous(), _shape(w_gate_EDF, w_up_EDF, gate_TK)
    order = sort_by_expert(expert_TK, len(w_up_EDF))
    x_RD = gather(x_TD.contiguous(), order)
    pre_PRF, hidden_RF = with_best_tile(
        "swiglu" if w_gate_EDF is not None and dropout == 0 else "up", x_RD, shape,
        lambda tile: forward_kernels.up(x_RD, w_gate_EDF, w_up_EDF, order, Between(activation, dropout, seed), tile),
    )  # fmt: skip
    out = with_best_tile("down", x_RD, shape, lambda tile: forward_kernels.down(hidden_RF, w_down_EFD, gate_TK, order, tile))
    out_TD = out if gate_TK.shape[1] == 1 else combine(out, order, len(w_up_EDF))
    return [out_TD, x_RD if gate_TK.shape[1] == 1 else x_RD.new_empty(0), pre_PRF, *order]


# Defined by hand: torch.library.custom_op would wrap each call in Python of its own, which the host has no time for.
_library = torch.library.Library("moebius", "FRAGMENT")


def _operator(name: str, run: Callable[..., list[Tensor]]) -> Any:
    _library.define(name + torch.library.infer_schema(run, mutates_args=()))
    _library.impl(name, run, "CompositeExplicitAutograd")
    return getattr(torch.ops.moebius, name).default


_forward_operator = _operator("experts_forward", _forward)


@torch.library.register_fake("moebius::experts_forward", lib=_library)
def _(x_TD, gate_TK, expert_TK, w_gate_EDF, w_up_EDF, w_down_EFD, seed, activation, dropout):
    R, E, D, F = expert_TK.numel(), *w_up_EDF.shape
    sizes = ((R,), expert_TK.shape, (E + 2,), (1 + -(-R // TILE_ROWS) + E, 4))
    order = Order(*(expert_TK.new_empty(size, dtype=torch.int32) for size in sizes))
    x_RD = x_TD.new_empty(R, D) if gate_TK.shape[1] == 1 else x_TD.new_empty(0)
    return [x_TD.new_empty(x_TD.shape), x_RD, x_TD.new_empty(1 if w_gate_EDF is None else 2, R, F), *order]


def _backward(
    grad_TD: Tensor, x_saved: Tensor, gate_TK: Tensor, w_gate_EDF: Tensor | None, w_up_EDF: Tensor, w_down_EFD: Tensor,
    seed: Tensor, pre_PRF: Tensor, assignment_R: Tensor, row_TK: Tensor, start: Tensor, tiles: Tensor, activation: str,
    dropout: float,
) -> list[Tensor]:  # fmt: skip
    """The gradients of x, gate_TK, w_up, w_down, and with SwiGLU w_gate. x_saved: x_RD with one slot a token, else x_TD."""
    order, E, one_slot = Order(assignment_R, row_TK, start, tiles), len(w_up_EDF), row_TK.shape[1] == 1
    w_gate_EDF = None if w_gate_EDF is None else _aligned(w_gate_EDF)
    w_up_EDF, w_down_EFD = _aligned(w_up_EDF), _aligned(w_down_EFD)
    gate_TK, shape = gate_TK.contiguous(), _shape(w_gate_EDF, w_up_EDF, gate_TK)
    grad_RD = gather(grad_TD.contiguous(), order)
    pre_grad_PRF, hidden_RF, gate_grad_TK = with_best_tile(
        "swiglu_backward" if w_gate_EDF is not None and dropout == 0 else "down_backward", grad_RD, shape,
        lambda tile: backward_kernels.down_backward(
            grad_RD, w_down_EFD, pre_PRF, gate_TK, order, Between(activation, dropout, seed), tile
        ),
    )  # fmt: skip
    x_grad = with_best_tile(
        "up_backward", grad_RD, shape,
        lambda tile: backward_kernels.up_backward(pre_grad_PRF, w_gate_EDF, w_up_EDF, order, tile),
    )  # fmt: skip
    x_grad_TD = x_grad if one_slot else combine(x_grad, order, E)
    x_RD = x_saved if one_slot else gather(x_saved.contiguous(), order)
    w_up_grad, w_gate_grad, w_down_grad = with_best_tile(
        "weights", grad_RD, shape, lambda tile: weight_gradients(x_RD, pre_grad_PRF, hidden_RF, grad_RD, order, E, tile)
    )
    return [x_grad_TD, gate_grad_TK.to(gate_TK.dtype), w_up_grad, w_down_grad, *([] if w_gate_grad is None else [w_gate_grad])]


_backward_operator = _operator("experts_backward", _backward)


@torch.library.register_fake("moebius::experts_backward", lib=_library)
def _(grad_TD, x_saved, gate_TK, w_gate_EDF, w_up_EDF, w_down_EFD, *_):
    weights = [w for w in (w_up_EDF, w_down_EFD, w_gate_EDF) if w is not None]
    return [w.new_empty(w.shape) for w in (grad_TD, gate_TK, *weights)]


# Not a function of autograd around the operators: recomputation would not reach inside of it in torch 2.11.
torch.library.register_autograd(
    "moebius::experts_forward",
    lambda ctx, grads: _gradients(ctx, grads[0], _backward_operator),
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output),
    lib=_library,
)


def _shape(w_gate_EDF: Tensor | None, w_up_EDF: Tensor, gate_TK: Tensor) -> tuple[int, ...]:
    """What, apart from the rows, decides which tile is fastest, or fits."""
    return (*w_up_EDF.shape, w_gate_EDF is not None, gate_TK.shape[1] == 1)


def _aligned(weight: Tensor) -> Tensor:
    """Descriptors want their first byte at a multiple of 16, which a view into a flat buffer need not have."""
    if weight.is_contiguous() and weight.data_ptr() % 16 == 0:
        return weight
    return weight.clone(memory_format=torch.contiguous_format)
