"""The whole expert layer as one differentiable function, made of Triton kernels.

If tokens have several slots, the rows of x and of the output's gradient are gathered where a
kernel reads them, as far as the kernels can do that. The forward pass saves x, the pre-activations
and the order of the rows for the backward pass. It does not save the activations, which are
cheaper to recompute than to keep, nor the outputs of the experts, which no gradient needs (see
backward.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moebius.kernels import backward as backward_kernels
from moebius.kernels import forward as forward_kernels
from moebius.kernels.activation import Between
from moebius.kernels.operators import differentiate, operator
from moebius.kernels.order import TILE_ROWS, Order, sort_by_expert
from moebius.kernels.rows import combine, gather
from moebius.kernels.tiles import Tile
from moebius.kernels.tune import with_best_tile
from moebius.kernels.weight_gradient import weight_gradients


def run_experts(
    x_TD: Tensor,
    gate_TK: Tensor,
    expert_TK: Tensor,
    w_gate_EDF: Tensor | None,
    w_up_EDF: Tensor,
    w_down_EFD: Tensor,
    activation: str,
    dropout: float,
) -> Tensor:
    """Return out_TD: for each token the sum of its experts' outputs, weighted by `gate_TK`.

    `expert_TK` holds expert ids of any integer type; the id E marks a slot without an expert, and
    a token without any expert gets zeros. `x_TD` and the weights share one dtype, bfloat16 or
    float32, and D and F are multiples of 8. `activation` is "swiglu", "relu2" or "gelu";
    `w_gate_EDF` is None unless it is "swiglu". `dropout` is the probability that a hidden
    activation is set to zero; the others are divided by 1 - `dropout`.

    The same inputs give the same bits every time. The host never waits for the device, except to
    measure tiles the first time a shape appears (see tune.py).
    """
    # Without dropout no kernel reads the seed, so any tensor of integers will do.
    seed = (
        torch.randint(2**31 - 1, (1,), device=x_TD.device) if dropout else expert_TK.flatten()[:1]
    )
    weights = (w_gate_EDF, w_up_EDF, w_down_EFD)
    inputs = (x_TD, gate_TK, expert_TK, *weights, seed, activation, dropout)
    if torch.compiler.is_compiling():
        return _forward_operator(*inputs)[0]
    return _Experts.apply(*inputs)


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    """Keep on `ctx` the inputs and outputs of `_forward` that the backward pass needs.

    If tokens have one slot, x is kept as the rows x_RD, which are gathered already and no larger
    than x. Otherwise x_TD is kept, because x_RD would be K times as large.
    """
    x_TD, gate_TK, _, *weights, seed, ctx.activation, ctx.dropout = inputs
    _, x_RD, pre_PRF, *order = output
    x_saved = x_RD if gate_TK.shape[1] == 1 else x_TD
    ctx.save_for_backward(x_saved, gate_TK, *weights, seed, pre_PRF, *order)


def _gradients(
    ctx: Any, grad_TD: Tensor, *_: Any, run: Callable[..., list[Tensor]]
) -> tuple[Tensor | None, ...]:
    """Return one gradient for each input of `_forward`, with None for those that have none.

    `run` is `_backward`, or the operator that wraps it.
    """
    x_saved, gate_TK, w_gate_EDF, *rest = ctx.saved_tensors
    gradients = run(grad_TD, x_saved, gate_TK, w_gate_EDF, *rest, ctx.activation, ctx.dropout)
    x_grad, gate_grad, w_up_grad, w_down_grad, *w_gate_grads = gradients
    w_gate_grad = w_gate_grads[0] if w_gate_EDF is not None else None
    return x_grad, gate_grad, None, w_gate_grad, w_up_grad, w_down_grad, None, None, None


class _Experts(torch.autograd.Function):
    """The autograd function that runs the layer outside of torch.compile.

    Compiled code uses the operators below instead, which cost the host more time per call. Unlike
    an `operators.Differentiable`, it returns the layer's output alone: for each further output,
    autograd would fill a gradient with zeros.
    """

    @staticmethod
    def forward(ctx, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        output = _forward(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TD):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gradients(ctx, grad_TD, run=_backward)


def _forward(
    x_TD: Tensor,
    gate_TK: Tensor,
    expert_TK: Tensor,
    w_gate_EDF: Tensor | None,
    w_up_EDF: Tensor,
    w_down_EFD: Tensor,
    seed: Tensor,
    activation: str,
    dropout: float,
) -> list[Tensor]:
    """Return out_TD, x_RD, pre_PRF and the four tensors of the order.

    x_RD is empty if tokens have more than one slot.
    """
    w_gate_EDF = None if w_gate_EDF is None else _aligned(w_gate_EDF)
    x_TD, w_up_EDF, w_down_EFD = _aligned(x_TD), _aligned(w_up_EDF), _aligned(w_down_EFD)
    gate_TK, shape = gate_TK.contiguous(), _shape(w_gate_EDF, w_up_EDF, gate_TK)
    one_slot = gate_TK.shape[1] == 1
    order = sort_by_expert(expert_TK, len(w_up_EDF))
    x = gather(x_TD, order) if one_slot else x_TD
    between = Between(activation, dropout, seed)
    of_slots = "" if one_slot else " of slots"
    pre_PRF, hidden_RF = with_best_tile(
        f"swiglu{of_slots}" if w_gate_EDF is not None and dropout == 0 else "up",
        x_TD,
        shape,
        lambda tile: forward_kernels.up(
            _rows_for(tile, x, order), w_gate_EDF, w_up_EDF, order, between, tile
        ),
    )
    out = with_best_tile(
        f"down{of_slots}",
        x_TD,
        shape,
        lambda tile: forward_kernels.down(hidden_RF, w_down_EFD, gate_TK, order, tile),
    )
    out_TD = out if one_slot else combine(out, order, len(w_up_EDF))
    return [out_TD, x if one_slot else x.new_empty(0), pre_PRF, *order]


def _rows_for(tile: Tile, vectors: Tensor, order: Order) -> Tensor:
    """Return what a kernel reads: the tokens' vectors if it gathers, or else the rows'.

    `vectors` may have been gathered already: then there are as many of them as rows.
    """
    is_gathered = len(vectors) == len(order.assignment_R)
    return vectors if tile.gathers or is_gathered else gather(vectors, order)


def _empty_forward(
    x_TD, gate_TK, expert_TK, w_gate_EDF, w_up_EDF, w_down_EFD, seed, activation, dropout
):
    """Return empty tensors with the shapes and dtypes that `_forward` returns."""
    R, (E, D, F) = expert_TK.numel(), w_up_EDF.shape
    order_shapes = ((R,), expert_TK.shape, (E + 2,), (1 + -(-R // TILE_ROWS) + E, 4))
    order = Order(*(expert_TK.new_empty(shape, dtype=torch.int32) for shape in order_shapes))
    x_RD = x_TD.new_empty(R, D) if gate_TK.shape[1] == 1 else x_TD.new_empty(0)
    pre_PRF = x_TD.new_empty(1 if w_gate_EDF is None else 2, R, F)
    return [x_TD.new_empty(x_TD.shape), x_RD, pre_PRF, *order]


_forward_operator = operator("experts_forward", _forward, _empty_forward)


def _backward(
    grad_TD: Tensor,
    x_saved: Tensor,
    gate_TK: Tensor,
    w_gate_EDF: Tensor | None,
    w_up_EDF: Tensor,
    w_down_EFD: Tensor,
    seed: Tensor,
    pre_PRF: Tensor,
    assignment_R: Tensor,
    row_TK: Tensor,
    start: Tensor,
    tiles: Tensor,
    activation: str,
    dropout: float,
) -> list[Tensor]:
    """Return the gradients of x, gate_TK, w_up, w_down and, with SwiGLU, w_gate.

    `x_saved` is x_RD if tokens have one slot, and x_TD otherwise.
    """
    order = Order(assignment_R, row_TK, start, tiles)
    E, one_slot = len(w_up_EDF), row_TK.shape[1] == 1
    w_gate_EDF = None if w_gate_EDF is None else _aligned(w_gate_EDF)
    w_up_EDF, w_down_EFD = _aligned(w_up_EDF), _aligned(w_down_EFD)
    x, grad_TD = _aligned(x_saved), _aligned(grad_TD)
    # No kernel but those of SwiGLU gathers.
    grad = gather(grad_TD, order) if one_slot or w_gate_EDF is None else grad_TD
    gate_TK, shape = gate_TK.contiguous(), _shape(w_gate_EDF, w_up_EDF, gate_TK)
    between = Between(activation, dropout, seed)
    of_slots = "" if one_slot else " of slots"
    is_plain_swiglu = w_gate_EDF is not None and dropout == 0
    pre_grad_PRF, hidden_RF, gate_grad_TK = with_best_tile(
        f"swiglu_backward{of_slots}" if is_plain_swiglu else "down_backward",
        grad_TD,
        shape,
        lambda tile: backward_kernels.down_backward(
            _rows_for(tile, grad, order), w_down_EFD, pre_PRF, gate_TK, order, between, tile
        ),
    )
    x_grad = with_best_tile(
        f"up_backward{of_slots}",
        grad_TD,
        shape,
        lambda tile: backward_kernels.up_backward(pre_grad_PRF, w_gate_EDF, w_up_EDF, order, tile),
    )
    x_grad_TD = x_grad if one_slot else combine(x_grad, order, E)
    w_up_grad, w_gate_grad, w_down_grad = with_best_tile(
        "weights" if w_gate_EDF is None or one_slot else "swiglu_weights of slots",
        grad_TD,
        shape,
        lambda tile: weight_gradients(
            _rows_for(tile, x, order), pre_grad_PRF, hidden_RF, _rows_for(tile, grad, order),
            order, E, tile,
        ),
    )  # fmt: skip
    gradients = [x_grad_TD, gate_grad_TK.to(gate_TK.dtype), w_up_grad, w_down_grad]
    return gradients if w_gate_grad is None else [*gradients, w_gate_grad]


def _empty_backward(grad_TD, x_saved, gate_TK, w_gate_EDF, w_up_EDF, w_down_EFD, *_):
    """Return empty tensors with the shapes and dtypes that `_backward` returns."""
    weights = [w for w in (w_up_EDF, w_down_EFD, w_gate_EDF) if w is not None]
    return [w.new_empty(w.shape) for w in (grad_TD, gate_TK, *weights)]


_backward_operator = operator("experts_backward", _backward, _empty_backward)
differentiate("experts_forward", _save, _gradients, _backward_operator)


def _shape(w_gate_EDF: Tensor | None, w_up_EDF: Tensor, gate_TK: Tensor) -> tuple[int, ...]:
    """Return what decides, apart from the number of rows, which tile is fastest or fits."""
    return (*w_up_EDF.shape, w_gate_EDF is not None, gate_TK.shape[1])


def _aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if it is not contiguous or not aligned to 16 bytes.

    Tensor descriptors require both; a view into a flat buffer may start anywhere.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
