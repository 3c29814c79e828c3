"""The activation's derivative as a separate kernel, for products that do not have it built in."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moebius.kernels.activation import Between, activate_backward, keep_scale
from moebius.kernels.launch import cdiv, launch
from moebius.kernels.order import Order

ROWS, COLUMNS = 1, 1024  # block of one program


def activation_backward(
    hidden_grad_RF: Tensor,
    pre_PRF: Tensor,
    gate_TK: Tensor,
    order: Order,
    num_experts: int,
    between: Between,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of pre_PRF, and the float32 gradient of gate_TK.

    `hidden_grad_RF` is grad_RD @ w_down.T for each expert's rows; neither the router's gates nor
    dropout have been applied to it. It is overwritten with the hidden activations times the
    router's gates, which the gradient of w_down needs.
    """
    (R, F), pre_grad_PRF = hidden_grad_RF.shape, torch.empty_like(pre_PRF)
    gate_grad_TK = torch.empty(gate_TK.shape, dtype=torch.float32, device=gate_TK.device)
    launch(
        _activation_backward, (cdiv(R, ROWS),), hidden_grad_RF, pre_PRF[0], pre_PRF[-1],
        pre_grad_PRF[0], pre_grad_PRF[-1], gate_TK, gate_grad_TK, order.assignment_R, order.start,
        between.seed, R, F, num_experts, between.activation, between.dropout, ROWS, COLUMNS,
    )  # fmt: skip
    return pre_grad_PRF, gate_grad_TK


@triton.jit
def _activation_backward(
    hidden_ptr, up_ptr, pre_gate_ptr, up_grad_ptr, pre_gate_grad_ptr, gate_ptr, gate_grad_ptr,
    assignment_ptr, start_ptr, seed_ptr, R, F, E,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Differentiate BR rows, BF columns at a time.

    `pre_gate` is the pre-activation of SwiGLU's gate, and `gate_ptr` points to the router's gates.
    Rows that are `taken` have an expert; the gradient of the other rows' gates is zero. Values
    that no kernel reads soon are marked to be evicted from the cache first.
    """
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    taken, existing = rows < tl.load(start_ptr + E), rows < R
    assignment = tl.load(assignment_ptr + rows, mask=existing, other=0)
    scale = tl.load(gate_ptr + assignment, mask=taken, other=0.0).to(tl.float32)[:, None]
    total = tl.zeros((BR, BF), tl.float32)
    for first in range(0, F, BF):
        columns = first + tl.arange(0, BF)
        inside = taken[:, None] & (columns < F)[None, :]
        place = rows[:, None].to(tl.int64) * F + columns[None, :]
        grad = tl.load(hidden_ptr + place, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + place, mask=inside, other=0.0, eviction_policy="evict_first").to(
            tl.float32
        )
        gate = up
        if ACTIVATION == "swiglu":
            gate = tl.load(
                pre_gate_ptr + place, mask=inside, other=0.0, eviction_policy="evict_first"
            ).to(tl.float32)
        if DROPOUT > 0:
            keep = keep_scale(seed_ptr, rows, columns, F, DROPOUT)
            grad *= keep
        activation, up_grad, gate_grad = activate_backward(grad, up, gate, ACTIVATION)
        total += grad * activation
        if DROPOUT > 0:
            activation *= keep
        dtype: tl.constexpr = hidden_ptr.dtype.element_ty
        tl.store(
            hidden_ptr + place,
            (activation * scale).to(dtype),
            mask=inside,
            eviction_policy="evict_first",
        )
        tl.store(
            up_grad_ptr + place,
            (up_grad * scale).to(dtype),
            mask=inside,
            eviction_policy="evict_first",
        )
        if ACTIVATION == "swiglu":
            tl.store(
                pre_gate_grad_ptr + place,
                (gate_grad * scale).to(dtype),
                mask=inside,
                eviction_policy="evict_first",
            )
    tl.store(gate_grad_ptr + assignment, tl.sum(total, axis=1), mask=existing)
