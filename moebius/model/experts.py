"""Running routed tokens through their experts: one signature, `(x_TD, routing, weights) -> out_TD`, several backends.

`loop` is the reference. `grouped` sorts the tokens by expert and runs each matrix as one grouped product. Tokens without an
expert get zero from every backend.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import Activation, ModelConfig
from moebius.model.mlp import activate
from moebius.model.router import Routing


class ExpertWeights(NamedTuple):
    """All experts of a layer: matrices applied as x @ w, and what happens between them."""

    w_gate_EDF: Tensor | None
    w_up_EDF: Tensor
    w_down_EFD: Tensor
    activation: Activation
    dropout: float

    def to(self, dtype: torch.dtype) -> "ExpertWeights":
        gate = None if self.w_gate_EDF is None else self.w_gate_EDF.to(dtype)
        up_EDF, down_EFD = self.w_up_EDF.to(dtype), self.w_down_EFD.to(dtype)
        return ExpertWeights(gate, up_EDF, down_EFD, self.activation, self.dropout)  # torch 2.11 cannot compile a _replace here


ExpertsFunction = Callable[[Tensor, Routing, ExpertWeights], Tensor]
Product = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_RD, w_EDF, end_E -> each row by its expert's matrix


class Experts(nn.Module):
    """The parameters of a layer's experts, and the backend that runs them."""

    def __init__(self, config: ModelConfig, num_experts: int, hidden: int, run: ExpertsFunction):
        super().__init__()
        self.config = config
        self.run = run
        E, D, F_ = num_experts, config.dim, hidden
        self.w_gate_EDF = nn.Parameter(torch.empty(E, D, F_)) if config.activation == "swiglu" else None
        self.w_up_EDF = nn.Parameter(torch.empty(E, D, F_))
        self.w_down_EFD = nn.Parameter(torch.empty(E, F_, D))

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        device = x_TD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype
        dropout = self.config.expert_dropout if self.training else 0.0
        weights = ExpertWeights(self.w_gate_EDF, self.w_up_EDF, self.w_down_EFD, self.config.activation, dropout)
        return self.run(x_TD.to(dtype), routing, weights.to(dtype))


def loop(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """The reference: expert by expert, each on its tokens, added where they came from."""
    out_TD = torch.zeros_like(x_TD)
    for expert in range(weights.w_up_EDF.shape[0]):
        token_R, slot_R = (routing.expert_TK == expert).nonzero(as_tuple=True)
        x_RD = x_TD.index_select(0, token_R)
        up_RF = x_RD @ weights.w_up_EDF[expert]
        gate_RF = x_RD @ weights.w_gate_EDF[expert] if weights.w_gate_EDF is not None else None
        hidden_RF = F.dropout(activate(up_RF, gate_RF, weights.activation), weights.dropout)
        y_RD = hidden_RF @ weights.w_down_EFD[expert]
        out_TD = out_TD.index_add(0, token_R, y_RD * routing.gate_TK[token_R, slot_R, None].to(y_RD.dtype))
    return out_TD


def grouped(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Sorted by expert, one grouped matrix product per matrix: no loop, no host synchronisation, no atomics."""
    order = sort_by_expert(routing.expert_TK, weights.w_up_EDF.shape[0])
    x_RD = dispatch(x_TD, order)
    y_RD = compute(x_RD, order, weights, _grouped_product)
    return combine(y_RD, routing.gate_TK, order)


def triton(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Our own kernels (moebius/kernels): gathered once, activation and gate in the products' epilogues, no atomics."""
    from moebius.kernels.experts import run_experts

    return run_experts(x_TD, routing.gate_TK, routing.expert_TK, *weights)


class ExpertOrder(NamedTuple):
    """The rows of all assignments, sorted by expert; those without an expert come last."""

    assignment_R: Tensor  # which flat assignment (token * K + slot) a row is
    row_TK: Tensor  # the inverse: which row an assignment is
    end_E: Tensor  # int32, end of each expert's rows; rows past the last belong to no expert
    taken_R1: Tensor  # whether a row belongs to an expert


def sort_by_expert(expert_TK: Tensor, num_experts: int) -> ExpertOrder:
    """A stable sort, so that the order, and with it every sum, is the same each time."""
    sorted_R, assignment_R = expert_TK.flatten().sort(stable=True)
    every_row = torch.arange(assignment_R.numel(), device=expert_TK.device)
    row_TK = torch.empty_like(assignment_R).scatter_(0, assignment_R, every_row).view(expert_TK.shape)
    every_expert = torch.arange(num_experts, device=expert_TK.device)
    end_E = torch.searchsorted(sorted_R, every_expert, right=True).to(torch.int32)
    return ExpertOrder(assignment_R, row_TK, end_E, (sorted_R < num_experts)[:, None])


def dispatch(x_TD: Tensor, order: ExpertOrder) -> Tensor:
    """x_RD: each row's token. Rows without an expert are zeroed, and so is their gradient: grouped_mm leaves both unwritten."""
    num_slots = order.row_TK.shape[1]
    x_RD = _Gather.apply(x_TD, order.assignment_R // num_slots, order.row_TK)
    return torch.where(order.taken_R1, x_RD, 0.0)  # pyright: ignore[reportArgumentType, reportCallIssue]


def compute(x_RD: Tensor, order: ExpertOrder, weights: ExpertWeights, product: Product) -> Tensor:
    """y_RD: each row through its expert; zero for rows without one."""
    up_RF = product(x_RD, weights.w_up_EDF, order.end_E)
    gate_RF = product(x_RD, weights.w_gate_EDF, order.end_E) if weights.w_gate_EDF is not None else None
    hidden_RF = F.dropout(activate(up_RF, gate_RF, weights.activation), weights.dropout)
    y_RD = product(hidden_RF, weights.w_down_EFD, order.end_E)
    return torch.where(order.taken_R1, y_RD, 0.0)


def _grouped_product(x_RD: Tensor, w_EDF: Tensor, end_E: Tensor) -> Tensor:
    return F.grouped_mm(x_RD, w_EDF, offs=end_E)


def combine(y_RD: Tensor, gate_TK: Tensor, order: ExpertOrder) -> Tensor:
    """out_TD: each token's gated sum over its experts, in the order of its slots."""
    y_TKD = _Gather.apply(y_RD, order.row_TK, order.assignment_R[:, None])
    return (y_TKD * gate_TK[..., None].to(y_RD.dtype)).sum(dim=1)  # pyright: ignore[reportOptionalOperand]


class _Gather(torch.autograd.Function):
    """x[index] whose backward is a gather too, where autograd's own is an atomic, non-deterministic index_add.

    Every source row is read at the flat positions reader[row], all of them: its gradient is the sum of those rows'.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, index: Tensor, reader_NJ: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(reader_NJ)
        return x_ND[index]

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (reader_NJ,) = ctx.saved_tensors
        return grad.flatten(0, -2)[reader_NJ].sum(dim=1), None, None
