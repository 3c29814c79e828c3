"""The experts' products in FP8 (train.expert_dtype float8), as torchao's recipe `rowwise_with_gw_hp` does them.

Outputs and the gradients of inputs are products of e4m3 numbers, summed in float32. Every row of the left operand and every
column of an expert's matrix has a scale of its own, from its absolute maximum. Weight gradients, sums over thousands of tokens,
stay bfloat16. Gradients are e4m3 too: the kernel takes nothing else, and with a scale a row they need e5m2's range no more
than activations do (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.model import experts
from moebius.model.experts import ExpertOrder, ExpertWeights
from moebius.model.router import Routing

ALIGNMENT = 16  # rows that make 16 bytes in FP8, what a product that sums over a group's rows asks for (pytorch/ao#2678)
E4M3 = torch.float8_e4m3fn
SMALLEST_SCALE = -117  # exponent: times e4m3's smallest number it is the smallest normal float32


def float8(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """`grouped` with products in FP8: torch's scaled grouped product on Hopper GPUs, elsewhere the same arithmetic, emulated.

    D and F multiples of 16. Each expert's rows start at a multiple of 16; no host synchronisation.
    """
    num_experts = weights.w_up_EDF.shape[0]
    order = aligned(experts.sort_by_expert(routing.expert_TK, num_experts), routing.expert_TK)
    x_RD = experts.dispatch(x_TD, order)
    y_RD = experts.compute(x_RD, order, weights, _Product.apply)
    return experts.combine(y_RD, routing.gate_TK, order)


def is_emulated(device: torch.device) -> bool:
    """Whether the device, for want of FP8 products, runs them in bfloat16: right, but no faster."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9


def padding(rows_E: Tensor) -> Tensor:
    """Rows that fill each expert's up to a multiple of 16."""
    return -rows_E % ALIGNMENT


def aligned(order: ExpertOrder, expert_TK: Tensor) -> ExpertOrder:
    """The same rows, each expert's moved to a multiple of 16: whatever the routing, R + 15 * E in all, rounded up to 16.

    Rows of padding belong to no expert, so that `dispatch` gives them zeros and nothing reads what becomes of them. All is
    aligned, not the groups alone, because inductor may transpose a weight gradient's operand: rows are then its stride.
    """
    num_experts, num_assignments = len(order.end_E), expert_TK.numel()
    rows_E = order.end_E.diff(prepend=order.end_E.new_zeros(1))
    end_E = (rows_E + padding(rows_E)).cumsum(0, dtype=torch.int32)
    # what lies before an expert's rows moves them; those without an expert come after all padding
    moved_by = F.pad(end_E - order.end_E, (1, 0))
    row_TK = order.row_TK + moved_by[expert_TK]
    num_rows = ALIGNMENT * math.ceil((num_assignments + (ALIGNMENT - 1) * num_experts) / ALIGNMENT)
    every_assignment = torch.arange(num_assignments, device=expert_TK.device)
    assignment_R = every_assignment.new_zeros(num_rows).scatter_(0, row_TK.flatten(), every_assignment)
    has_expert = (expert_TK < num_experts).flatten()
    taken_R = has_expert.new_zeros(num_rows).scatter_(0, row_TK.flatten(), has_expert)
    return ExpertOrder(assignment_R, row_TK, end_E, taken_R[:, None])


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., I) as e4m3 numbers and a float32 scale (..., 1) of each row: x is about their product.

    The scale is the smallest power of two that leaves the row's maximum finite, as in torchao: multiplying by it rounds
    nothing. NaN and infinity become NaN, so that a step that has them is still skipped.
    """
    largest = x.abs().amax(dim=-1, keepdim=True).float() / torch.finfo(E4M3).max
    # powers of two, and 1 over them, by their bits: exp2, log2 and a compiled division are not exact on every device
    bits = ((largest.view(torch.int32) + 0x7FFFFF) & 0x7F800000).clamp(SMALLEST_SCALE + 127 << 23, 254 << 23)
    inverse, scale = ((254 << 23) - bits).view(torch.float32), bits.view(torch.float32)
    return (x * inverse).to(E4M3).contiguous(), scale.contiguous()


class _Product(torch.autograd.Function):
    """x_RD, w_EDF, end_E -> out_RF, each row by its expert's matrix. Rows past the last end are not written."""

    @staticmethod
    def forward(ctx, x_RD: Tensor, w_EDF: Tensor, end_E: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x_RD, w_EDF, end_E)
        return _multiply(x_RD, w_EDF.mT, end_E)

    @staticmethod
    def backward(ctx, grad_RF: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_RD, w_EDF, end_E = ctx.saved_tensors
        x_grad_RD = _multiply(grad_RF, w_EDF, end_E)
        w_grad_EDF = F.grouped_mm(x_RD.bfloat16().T, grad_RF.bfloat16(), offs=end_E)
        return x_grad_RD, w_grad_EDF.to(w_EDF.dtype), None


def _multiply(x_RI: Tensor, w_EOI: Tensor, end_E: Tensor) -> Tensor:
    """x_RI by its expert's transposed w_EOI, both with a scale for each sum: (R, O), in x's dtype."""
    x8_RI, x_scale_R1 = quantise(x_RI)
    w8_EOI, w_scale_EO1 = quantise(w_EOI)
    out_RO = _product(x8_RI, w8_EOI, x_scale_R1.squeeze(-1), w_scale_EO1.squeeze(-1), end_E)
    # a `to` that does nothing hides the function's result from torch 2.11's compiler, which then takes its gradient for zero
    return out_RO if out_RO.dtype == x_RI.dtype else out_RO.to(x_RI.dtype)


# An operator of its own, because inductor's lowering of torch's once lost the layout that it demands (pytorch#156325).
@torch.library.custom_op("moebius::float8_product", mutates_args=(), tags=(torch.Tag.needs_exact_strides,))
def _product(x8_RI: Tensor, w8_EOI: Tensor, x_scale_R: Tensor, w_scale_EO: Tensor, end_E: Tensor) -> Tensor:
    """out_RO, bfloat16."""
    if is_emulated(x8_RI.device):
        return _dequantised_product(x8_RI, w8_EOI, x_scale_R, w_scale_EO, end_E)
    # use_fast_accum would keep sums in the tensor cores, with 14 bits (DeepSeek-V3, section 3.3.2)
    return torch._scaled_grouped_mm(  # pyright: ignore[reportPrivateImportUsage]
        x8_RI, w8_EOI.mT, x_scale_R, w_scale_EO, offs=end_E, out_dtype=torch.bfloat16, use_fast_accum=False
    )


@_product.register_fake
def _(x8_RI, w8_EOI, x_scale_R, w_scale_EO, end_E):
    return x8_RI.new_empty(len(x8_RI), w8_EOI.shape[1], dtype=torch.bfloat16)


def _dequantised_product(x8_RI: Tensor, w8_EOI: Tensor, x_scale_R: Tensor, w_scale_EO: Tensor, end_E: Tensor) -> Tensor:
    """The reference: bfloat16 holds an e4m3 number times a power of two exactly, and its products are summed in float32."""
    x_RI = (x8_RI.float() * x_scale_R[:, None]).bfloat16()
    w_EOI = (w8_EOI.float() * w_scale_EO[..., None]).bfloat16()
    return F.grouped_mm(x_RI, w_EOI.mT, offs=end_E)
