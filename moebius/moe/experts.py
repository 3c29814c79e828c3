"""The routed experts: their parameters, and the backends that run tokens through them.

Every backend has the same signature, `(x_TD, routing, weights) -> out_TD`, and returns zero for
tokens without an expert. `loop` is the readable reference. `grouped` sorts the tokens by expert
and computes one grouped product per matrix. `triton` calls our own kernels.
moebius/moe/backends.py finds a backend by its name.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import Activation, ModelConfig
from moebius.moe.mlp import activate
from moebius.moe.router import Routing


class ExpertWeights(NamedTuple):
    """The matrices of all experts of a layer, and what happens between their products."""

    w_gate_EDF: Tensor | None
    """Gate projections, applied as x @ w like the others. None if the activation has no gate."""
    w_up_EDF: Tensor
    """Up projections."""
    w_down_EFD: Tensor
    """Down projections."""
    activation: Activation
    """Activation between the up and the down projection."""
    dropout: float
    """Probability with which a hidden activation is set to zero."""

    def to(self, dtype: torch.dtype) -> "ExpertWeights":
        """Return the same weights with matrices of another dtype."""
        gate = None if self.w_gate_EDF is None else self.w_gate_EDF.to(dtype)
        up_EDF, down_EFD = self.w_up_EDF.to(dtype), self.w_down_EFD.to(dtype)
        # torch 2.11 cannot compile `_replace` here.
        return ExpertWeights(gate, up_EDF, down_EFD, self.activation, self.dropout)


ExpertsFunction = Callable[[Tensor, Routing, ExpertWeights], Tensor]
"""An expert backend: (x_TD, routing, weights) -> out_TD."""
Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A grouped product: (x_RD, w_EDF, end_E) -> out_RF. It multiplies each row by the matrix of its
expert; end_E holds the end of each expert's rows. Rows past the last end stay undefined."""


class Experts(nn.Module):
    """The parameters of a layer's experts, and the backend that runs them."""

    def __init__(self, config: ModelConfig, num_experts: int, hidden: int, run: ExpertsFunction):
        """Build uninitialized parameters for experts of that hidden width."""
        super().__init__()
        self.config = config
        self.run = run
        E, D, F_ = num_experts, config.dim, hidden
        has_gate = config.activation == "swiglu"
        self.w_gate_EDF = nn.Parameter(torch.empty(E, D, F_)) if has_gate else None
        self.w_up_EDF = nn.Parameter(torch.empty(E, D, F_))
        self.w_down_EFD = nn.Parameter(torch.empty(E, F_, D))

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Return out_TD in x's dtype or, under autocast, in autocast's dtype."""
        device = x_TD.device.type
        is_autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_autocast else x_TD.dtype
        dropout = self.config.expert_dropout if self.training else 0.0
        weights = ExpertWeights(
            self.w_gate_EDF, self.w_up_EDF, self.w_down_EFD, self.config.activation, dropout
        )
        return self.run(x_TD.to(dtype), routing, weights.to(dtype))


def loop(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Return out_TD, computed one expert at a time. This is the reference for all backends."""
    out_TD = torch.zeros_like(x_TD)
    for expert in range(weights.w_up_EDF.shape[0]):
        token_R, slot_R = (routing.expert_TK == expert).nonzero(as_tuple=True)
        x_RD = x_TD.index_select(0, token_R)
        up_RF = x_RD @ weights.w_up_EDF[expert]
        gate_RF = x_RD @ weights.w_gate_EDF[expert] if weights.w_gate_EDF is not None else None
        hidden_RF = F.dropout(activate(up_RF, gate_RF, weights.activation), weights.dropout)
        y_RD = hidden_RF @ weights.w_down_EFD[expert]
        gate_R1 = routing.gate_TK[token_R, slot_R, None].to(y_RD.dtype)
        out_TD = out_TD.index_add(0, token_R, y_RD * gate_R1)
    return out_TD


def grouped(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Return out_TD, computed by one grouped product per matrix over rows sorted by expert.

    There is no loop over experts, no synchronization with the host and no atomic addition.
    """
    order = sort_by_expert(routing.expert_TK, weights.w_up_EDF.shape[0])
    x_RD = dispatch(x_TD, order)
    y_RD = compute(x_RD, order, weights, _grouped_product)
    return combine(y_RD, routing.gate_TK, order)


def triton(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Return out_TD, computed by the kernels of moebius/kernels.

    They gather the rows inside the kernels of the products or in a pass before, and apply
    activation and gates inside those kernels, too.
    """
    from moebius.kernels.experts import run_experts

    return run_experts(x_TD, routing.gate_TK, routing.expert_TK, *weights)


class ExpertOrder(NamedTuple):
    """Rows sorted by expert, one for each assignment; those without an expert come last.

    The number of an assignment is token * K + slot.
    """

    assignment_R: Tensor
    """Number of the assignment that a row stands for."""
    row_TK: Tensor
    """The inverse of assignment_R: the row of each assignment."""
    end_E: Tensor
    """End of each expert's rows, int32. Rows past the last end belong to no expert."""
    taken_R1: Tensor
    """Whether a row belongs to an expert."""


def sort_by_expert(expert_TK: Tensor, num_experts: int) -> ExpertOrder:
    """Return the order of the rows. Assignments to the same expert keep their relative order.

    The sort is stable so that the order, and therefore every sum, is the same each time.
    """
    sorted_R, assignment_R = expert_TK.flatten().sort(stable=True)
    rows_R = torch.arange(assignment_R.numel(), device=expert_TK.device)
    row_TK = torch.empty_like(assignment_R).scatter_(0, assignment_R, rows_R)
    expert_E = torch.arange(num_experts, device=expert_TK.device)
    end_E = torch.searchsorted(sorted_R, expert_E, right=True).to(torch.int32)
    taken_R1 = (sorted_R < num_experts)[:, None]
    return ExpertOrder(assignment_R, row_TK.view(expert_TK.shape), end_E, taken_R1)


def dispatch(x_TD: Tensor, order: ExpertOrder) -> Tensor:
    """Return x_RD, the token of each row; zero for rows without an expert.

    The gradient of those rows is zeroed too, because grouped_mm writes neither.
    """
    num_slots = order.row_TK.shape[1]
    x_RD = _Gather.apply(x_TD, order.assignment_R // num_slots, order.row_TK)
    return torch.where(  # pyright: ignore[reportCallIssue]
        order.taken_R1,
        x_RD,  # pyright: ignore[reportArgumentType]
        0.0,
    )


def compute(x_RD: Tensor, order: ExpertOrder, weights: ExpertWeights, product: Product) -> Tensor:
    """Return y_RD, the output of its expert for each row; zero for rows without an expert."""
    up_RF = product(x_RD, weights.w_up_EDF, order.end_E)
    gate_RF = None
    if weights.w_gate_EDF is not None:
        gate_RF = product(x_RD, weights.w_gate_EDF, order.end_E)
    hidden_RF = F.dropout(activate(up_RF, gate_RF, weights.activation), weights.dropout)
    y_RD = product(hidden_RF, weights.w_down_EFD, order.end_E)
    return torch.where(order.taken_R1, y_RD, 0.0)


def _grouped_product(x_RD: Tensor, w_EDF: Tensor, end_E: Tensor) -> Tensor:
    return F.grouped_mm(x_RD, w_EDF, offs=end_E)


def combine(y_RD: Tensor, gate_TK: Tensor, order: ExpertOrder) -> Tensor:
    """Return out_TD, each token's sum of its experts' outputs, weighted by the gates.

    The outputs are added in the order of the slots.
    """
    y_TKD = _Gather.apply(y_RD, order.row_TK, order.assignment_R[:, None])
    assert y_TKD is not None
    return (y_TKD * gate_TK[..., None].to(y_RD.dtype)).sum(dim=1)


class _Gather(torch.autograd.Function):
    """An equivalent of x[index] whose backward pass gathers, too.

    The backward pass of torch's own indexing adds atomically, in no fixed order.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx, x_ND: Tensor, index: Tensor, reader_NJ: Tensor
    ) -> Tensor:
        """Return x_ND[index].

        reader_NJ lists, for every row of x, all flat positions in `index` that read the row. The
        gradient of the row is the sum of the gradients at these positions.
        """
        ctx.save_for_backward(reader_NJ)
        return x_ND[index]

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (reader_NJ,) = ctx.saved_tensors
        return grad.flatten(0, -2)[reader_NJ].sum(dim=1), None, None
