"""Experts whose matrix products are FP8 (train.expert_dtype float8).

This follows torchao's recipe `rowwise_with_gw_hp`. Outputs and the gradients of inputs are
products of e4m3 numbers, summed in float32. Every row of the left operand and every column of an
expert's matrix has a scale of its own, from its largest absolute value. Weight gradients, which
are sums over thousands of tokens, stay bfloat16.

Gradients are e4m3, too, because the GPU's product takes nothing else. With a scale per row they
need the larger range of e5m2 no more than activations do (DeepSeek-V3, arXiv 2412.19437, section
3.3.2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.hardware.backends import is_hopper
from moebius.moe import experts
from moebius.moe.experts import ExpertOrder, ExpertWeights
from moebius.moe.router import Routing

ALIGNMENT = 16
"""Each expert's number of rows is padded to a multiple of this: 16 bytes in FP8, which a product
that sums over the rows of a group requires (pytorch/ao#2678)."""
E4M3 = torch.float8_e4m3fn
SMALLEST_SCALE = -117
"""Smallest exponent of a scale: 2**-117 times the smallest e4m3 number is the smallest normal
float32."""


def float8(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Return out_TD as `grouped` does, with products in FP8.

    Hopper GPUs run torch's scaled grouped product; elsewhere the same arithmetic is emulated. D
    and F must be multiples of 16. Nothing waits for the device.
    """
    num_experts = weights.w_up_EDF.shape[0]
    order = aligned(experts.sort_by_expert(routing.expert_TK, num_experts), routing.expert_TK)
    x_RD = experts.dispatch(x_TD, order)
    y_RD = experts.compute(x_RD, order, weights, _Product.apply)
    return experts.combine(y_RD, routing.gate_TK, order)


def is_emulated(device: torch.device) -> bool:
    """Return whether the device has no FP8 products, so that bfloat16 products emulate them.

    Their results are correct, but no faster than bfloat16.
    """
    return not is_hopper(device)


def padding(rows_E: Tensor) -> Tensor:
    """Return how many rows each expert needs to fill its rows up to a multiple of 16."""
    return -rows_E % ALIGNMENT


def aligned(order: ExpertOrder, expert_TK: Tensor) -> ExpertOrder:
    """Return the order with the start of each expert's rows moved to a multiple of 16.

    The new order has R + 15 * E rows, rounded up to a multiple of 16, so that its size does not
    depend on the routing. The rows of padding belong to no expert: `dispatch` fills them with
    zeros, and nothing reads what is computed from them. The total is a multiple of 16 because
    inductor may transpose the operand of a weight gradient, whose stride is then the number of
    rows.
    """
    num_experts, num_assignments = len(order.end_E), expert_TK.numel()
    rows_E = order.end_E.diff(prepend=order.end_E.new_zeros(1))
    end_E = (rows_E + padding(rows_E)).cumsum(0, dtype=torch.int32)
    # An expert's rows move by the padding before them. The last entry is for assignments without
    # an expert, which move behind all padding.
    shift = F.pad(end_E - order.end_E, (1, 0))
    row_TK = order.row_TK + shift[expert_TK]
    num_rows = ALIGNMENT * math.ceil((num_assignments + (ALIGNMENT - 1) * num_experts) / ALIGNMENT)
    assignments = torch.arange(num_assignments, device=expert_TK.device)
    assignment_R = assignments.new_zeros(num_rows).scatter_(0, row_TK.flatten(), assignments)
    has_expert = (expert_TK < num_experts).flatten()
    taken_R = has_expert.new_zeros(num_rows).scatter_(0, row_TK.flatten(), has_expert)
    return ExpertOrder(assignment_R, row_TK, end_E, taken_R[:, None])


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return e4m3 numbers of x's shape (..., I) and a float32 scale per row, of shape (..., 1).

    Their product approximates x. The scale is the smallest power of two with which the row's
    largest value stays finite, as in torchao, so multiplying by it rounds nothing. NaN and
    infinity become NaN, so that a step with such values is still skipped.
    """
    largest = x.abs().amax(dim=-1, keepdim=True).float() / torch.finfo(E4M3).max
    # Powers of two and their inverses are built from their bits, because exp2, log2 and compiled
    # divisions are not exact on every device. Bits 23 to 30 hold the exponent plus 127.
    bits = ((largest.view(torch.int32) + 0x7FFFFF) & 0x7F800000).clamp(
        SMALLEST_SCALE + 127 << 23, 254 << 23
    )
    inverse, scale = ((254 << 23) - bits).view(torch.float32), bits.view(torch.float32)
    return (x * inverse).to(E4M3).contiguous(), scale.contiguous()


class _Product(torch.autograd.Function):
    """A grouped product in FP8: x_RD, w_EDF, end_E -> out_RF.

    Each row is multiplied by the matrix of its expert. Rows past the last end are not written.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx, x_RD: Tensor, w_EDF: Tensor, end_E: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_RD, w_EDF, end_E)
        return _multiply(x_RD, w_EDF.mT, end_E)

    @staticmethod
    def backward(ctx, grad_RF: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_RD, w_EDF, end_E = ctx.saved_tensors
        x_grad_RD = _multiply(grad_RF, w_EDF, end_E)
        w_grad_EDF = F.grouped_mm(x_RD.bfloat16().T, grad_RF.bfloat16(), offs=end_E)
        return x_grad_RD, w_grad_EDF.to(w_EDF.dtype), None


def _multiply(x_RI: Tensor, w_EOI: Tensor, end_E: Tensor) -> Tensor:
    """Return out_RO in x's dtype: each row of x_RI times its expert's transposed matrix.

    Both operands are quantized along the dimension I that the product sums over.
    """
    x8_RI, x_scale_R1 = quantize(x_RI)
    w8_EOI, w_scale_EO1 = quantize(w_EOI)
    out_RO = _product(x8_RI, w8_EOI, x_scale_R1.squeeze(-1), w_scale_EO1.squeeze(-1), end_E)
    # A `to` without effect would hide the function's result from torch 2.11's compiler, which
    # would then assume that its gradient is zero.
    return out_RO if out_RO.dtype == x_RI.dtype else out_RO.to(x_RI.dtype)


# This is a separate operator because inductor's lowering of torch's operator once lost the memory
# layout that it requires (pytorch#156325).
@torch.library.custom_op(
    "moebius::float8_product", mutates_args=(), tags=(torch.Tag.needs_exact_strides,)
)
def _product(
    x8_RI: Tensor, w8_EOI: Tensor, x_scale_R: Tensor, w_scale_EO: Tensor, end_E: Tensor
) -> Tensor:
    """Return out_RO in bfloat16: the grouped product of e4m3 operands times their scales."""
    if is_emulated(x8_RI.device):
        return _dequantized_product(x8_RI, w8_EOI, x_scale_R, w_scale_EO, end_E)
    # use_fast_accum would keep sums in the tensor cores, at 14 bits (DeepSeek-V3, section 3.3.2).
    return torch._scaled_grouped_mm(  # pyright: ignore[reportPrivateImportUsage]
        x8_RI,
        w8_EOI.mT,
        x_scale_R,
        w_scale_EO,
        offs=end_E,
        out_dtype=torch.bfloat16,
        use_fast_accum=False,
    )


@_product.register_fake
def _(x8_RI, w8_EOI, x_scale_R, w_scale_EO, end_E):
    return x8_RI.new_empty(len(x8_RI), w8_EOI.shape[1], dtype=torch.bfloat16)


def _dequantized_product(
    x8_RI: Tensor, w8_EOI: Tensor, x_scale_R: Tensor, w_scale_EO: Tensor, end_E: Tensor
) -> Tensor:
    """Return the result of `_product` from a product in bfloat16. This is its reference.

    bfloat16 holds an e4m3 number times a power of two exactly, and the products are summed in
    float32.
    """
    x_RI = (x8_RI.float() * x_scale_R[:, None]).bfloat16()
    w_EOI = (w8_EOI.float() * w_scale_EO[..., None]).bfloat16()
    return F.grouped_mm(x_RI, w_EOI.mT, offs=end_E)
