"""Run the experts for a few tokens, as when text is written one token at a time.

The functions are expert backends like those of moebius/moe/experts.py, without dropout. They take
a handful of operators where `loop` takes several for each expert, and never wait for the device,
so they can be captured in a CUDA graph.
"""

import torch
from torch import Tensor, nn

from moebius.moe.experts import Experts, ExpertsFunction, ExpertWeights, loop
from moebius.moe.mlp import activate
from moebius.moe.router import Routing

FEW_ON_GPU = 1024
"""Tokens up to which `loop` is replaced on a GPU. The results of all experts for all tokens then
are in memory at once."""


def gathered(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Return out_TD, computed with a copy of its expert's matrices for each assignment.

    With fewer assignments than experts, most weights are not read at all.
    """
    num_experts = weights.w_up_EDF.shape[0]
    T, K = routing.expert_TK.shape
    expert_R = routing.expert_TK.flatten().clamp(max=num_experts - 1)
    x_R1D = x_TD.repeat_interleave(K, dim=0)[:, None]
    up_R1F = torch.bmm(x_R1D, weights.w_up_EDF[expert_R])
    w_gate_EDF = weights.w_gate_EDF
    gate_R1F = torch.bmm(x_R1D, w_gate_EDF[expert_R]) if w_gate_EDF is not None else None
    hidden_R1F = activate(up_R1F, gate_R1F, weights.activation)
    y_R1D = torch.bmm(hidden_R1F, weights.w_down_EFD[expert_R])
    gate_TK = torch.where(routing.expert_TK < num_experts, routing.gate_TK, 0.0)
    return (y_R1D.view(T, K, -1) * gate_TK[..., None].to(y_R1D.dtype)).sum(dim=1)


def every_expert(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Return out_TD, computed by running every expert on every token.

    With so few tokens that reading the weights takes longer than multiplying by them, the
    products that no token needs cost little, and every weight is read once.
    """
    num_experts = weights.w_up_EDF.shape[0]
    x_ETD = x_TD.expand(num_experts, *x_TD.shape)
    up_ETF = torch.bmm(x_ETD, weights.w_up_EDF)
    w_gate_EDF = weights.w_gate_EDF
    gate_ETF = torch.bmm(x_ETD, w_gate_EDF) if w_gate_EDF is not None else None
    y_ETD = torch.bmm(activate(up_ETF, gate_ETF, weights.activation), weights.w_down_EFD)
    # One more column takes the gates of slots without an expert.
    gate_TE = routing.gate_TK.new_zeros(len(x_TD), num_experts + 1)
    gate_TE = gate_TE.scatter_add(1, routing.expert_TK, routing.gate_TK)[:, :num_experts]
    return torch.einsum("etd,te->td", y_ETD, gate_TE.to(y_ETD.dtype))


def few_or_many(many: ExpertsFunction, is_on_gpu: bool) -> ExpertsFunction:
    """Return an expert backend that leaves only larger numbers of tokens to `many`.

    On a GPU only `loop` is replaced, because it waits for the device in every layer. The other
    backends read each expert once for all its tokens, and can be captured as they are.
    """
    if is_on_gpu and many is not loop:
        return many

    def run(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
        if routing.expert_TK.numel() <= weights.w_up_EDF.shape[0]:
            return gathered(x_TD, routing, weights)
        if is_on_gpu and len(x_TD) <= FEW_ON_GPU:
            return every_expert(x_TD, routing, weights)
        return many(x_TD, routing, weights)

    return run


def use_few_or_many(model: nn.Module, is_on_gpu: bool) -> None:
    """Let all experts in the model run a few tokens by the functions above, in place."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.run = few_or_many(module.run, is_on_gpu)
