"""Experts whose products have e4m3 operands, computed in float64: the reference for FP8."""

import math

import torch
from torch import Tensor

from moebius.config import Activation
from moebius.moe.experts import ExpertWeights
from moebius.moe.mlp import activate
from moebius.moe.router import Routing
from tests.moe.test_experts import CASES, E, routing_of

D, F = 32, 48
EXACT = 2.0**-8
"""Tolerance for one product, which is rounded to bfloat16."""
SAME = 0.03
"""Tolerance for a layer whose operands are rounded to e4m3 in the same places.

Rounding a result to bfloat16 changes it by 2**-10 on average. A step of e4m3 is 2**-3, so one
number in 128 is then quantized to a different value. This changes the result by 0.8% of its norm
(the root mean square of a step over a mantissa from 1 to 2), for each of up to four roundings
before a result. The tolerance is about twice the sqrt(4) * 0.8% of four such roundings, for
products with few rows.
"""
NEAR = 0.11
"""Tolerance for a layer in FP8 compared with one in float32.

Rounding to e4m3 changes a value by 2.6% (root mean square, 2**-4 / sqrt(3) over a mantissa from 1
to 2). There are at most eight roundings between an input and a gradient (x, w, w, hidden, grad, w,
grad, w), two for most sums: sqrt(8) * 2.6%. The tolerance is half as much again, for products with
few rows.
"""
HARD = {
    **CASES,
    "16 rows an expert": torch.arange(E).repeat(16)[:, None],
    "15, 16, 17, 0 and 32 rows": torch.repeat_interleave(torch.tensor([15, 16, 17, 0, 32]))[
        :, None
    ],
}


def e4m3(x_D: Tensor) -> Tensor:
    """Return the row rounded to e4m3, which has three bits of mantissa.

    Its scale is the smallest power of two that keeps the row within 448.
    """
    largest = x_D.abs().max().item()
    if largest == 0:
        return x_D
    scale = 2.0 ** math.ceil(math.log2(largest / 448))
    scaled_D = x_D.double() / scale
    step_D = 2.0 ** (scaled_D.abs().log2().floor().clamp(min=-6) - 3)
    return (scaled_D / step_D).round() * step_D * scale


def rows_in_e4m3(x: Tensor) -> Tensor:
    """Return a matrix, or several, with every row rounded to e4m3; float64."""
    return torch.stack([e4m3(row) for row in x.flatten(0, -2).double()]).view(x.shape)


class ByHand(torch.autograd.Function):
    """One expert's product in float64, of operands that are rounded to e4m3."""

    @staticmethod
    def forward(ctx, x_RD, w_DF):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x_RD, w_DF)
        return rows_in_e4m3(x_RD) @ rows_in_e4m3(w_DF.T).T

    @staticmethod
    def backward(ctx, grad_RF):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_RD, w_DF = ctx.saved_tensors
        x_grad = rows_in_e4m3(grad_RF) @ rows_in_e4m3(w_DF).T
        return x_grad, x_RD.bfloat16().double().T @ grad_RF.bfloat16().double()


def by_hand(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Return out_TD as the backend `loop` computes it, with these products."""
    x_TD, gate_TK = x_TD.double(), routing.gate_TK.double()
    out_TD = 0 * x_TD
    for expert in range(E):
        token_R, slot_R = (routing.expert_TK == expert).nonzero(as_tuple=True)
        if len(token_R) == 0:
            continue
        w_gate, w_up, w_down = (None if w is None else w[expert].double() for w in weights[:3])
        up_RF = ByHand.apply(x_TD[token_R], w_up)
        gate_RF = None if w_gate is None else ByHand.apply(x_TD[token_R], w_gate)
        y_RD = ByHand.apply(activate(up_RF, gate_RF, weights.activation), w_down)
        out_TD = out_TD.index_add(0, token_R, y_RD * gate_TK[token_R, slot_R, None])
    return out_TD.float()


def some_weights(
    activation: Activation, device: str = "cpu", dropout: float = 0.0
) -> ExpertWeights:
    generator = torch.Generator().manual_seed(0)
    shapes = [(E, D, F)] * 2 + [(E, F, D)]
    gate, up, down = (
        (torch.randn(shape, generator=generator) / shape[1] ** 0.5).to(device).requires_grad_()
        for shape in shapes
    )
    return ExpertWeights(gate if activation == "swiglu" else None, up, down, activation, dropout)


def inputs_of(
    case: str, activation: Activation = "swiglu", device: str = "cpu"
) -> tuple[Tensor, Routing, ExpertWeights, Tensor]:
    """Return x_TD, the routing, the weights, and a gradient of the output."""
    expert_TK = HARD[case].to(device)
    x_TD, upstream_TD = (
        torch.randn(len(expert_TK), D, generator=torch.Generator().manual_seed(seed)).to(device)
        for seed in (5, 6)
    )
    return (
        x_TD.requires_grad_(),
        routing_of(expert_TK),
        some_weights(activation, device),
        upstream_TD,
    )


def assert_near(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Assert that the values are finite, and that the norms of the differences are small enough.

    The gradient of a single gate is left out: it is one sum, whose terms may cancel, so its
    relative error says nothing.
    """
    for values, expected_values in zip(ours, expected, strict=True):
        assert values.isfinite().all()
        difference, norm = (values - expected_values).norm(), expected_values.norm()
        assert expected_values.numel() == 1 or difference <= tolerance * norm
