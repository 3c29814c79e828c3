"""Routers: logits in, `Routing` out. All arithmetic is float32 or wider; nothing is stored between calls."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import ModelConfig

SMALLEST_SUM = 1e-20  # of a token's sigmoid probabilities, which may all be 0 in float32


class Routing(NamedTuple):
    """Who goes where. The id num_experts means "no expert": dropped, or below the threshold."""

    gate_TK: Tensor
    expert_TK: Tensor
    probs_TE: Tensor
    logits_TE: Tensor


class Router(nn.Module):
    """x_TD -> Routing, by the configuration's router_type.

    Logits are x @ weight.T / sqrt(D). Without the division an Adam step of size lr, all of a row's D entries at once, moves
    a logit by about lr * D, which is several units before the warm-up is over: the first experts to be ahead take all
    tokens. The division, muP's for a layer that reads a wide input out (arXiv 2203.03466), makes it lr * sqrt(D).
    """

    def __init__(self, config: ModelConfig, num_experts: int):
        super().__init__()
        self.config = config
        self.num_experts = num_experts
        self.weight_ED = nn.Parameter(torch.empty(num_experts, config.dim))

    def forward(self, x_TD: Tensor) -> Routing:
        with torch.autocast(x_TD.device.type, enabled=False):
            wide = torch.promote_types(x_TD.dtype, torch.float32)
            logits_TE = F.linear(x_TD.to(wide), self.weight_ED.to(wide)) / math.sqrt(self.config.dim)
            return self.route(logits_TE)

    def route(self, logits_TE: Tensor) -> Routing:
        """The choice alone, so that it can be held against other implementations."""
        config = self.config
        scale = config.gate_factor(self.num_experts)
        if config.router_type == "sigmoid":
            return sigmoid(logits_TE, config.router_threshold, scale)
        if config.router_type == "switch":
            capacity = expert_capacity(logits_TE.shape[0], self.num_experts, config.capacity_factor)
            return switch(logits_TE, capacity, scale)
        return softmax_topk(logits_TE, config.router_top_k, config.renormalize_gates, scale)


def softmax_topk(logits_TE: Tensor, k: int, renormalize: bool, scale: float = 1.0) -> Routing:
    """Exactly k experts per token; the gate is the expert's probability (Shazeer et al. 2017, Mixtral).

    At k = 1 the gate is never renormalised: it would be the constant 1 and the router would get no gradient.
    """
    probs_TE = logits_TE.softmax(dim=-1)
    gate_TK, expert_TK = probs_TE.topk(k, dim=-1)
    if renormalize and k > 1:
        gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
    return Routing(gate_TK * scale, expert_TK, probs_TE, logits_TE)


def switch(logits_TE: Tensor, capacity: int, scale: float = 1.0) -> Routing:
    """Top-1; an expert takes the first `capacity` tokens that choose it, later ones get no expert (Fedus et al. 2021).

    First come, first served: a dropped token depends on earlier tokens only, so causality holds.
    """
    num_experts = logits_TE.shape[1]
    probs_TE = logits_TE.softmax(dim=-1)
    gate_T, expert_T = probs_TE.max(dim=-1)
    chosen_TE = F.one_hot(expert_T, num_experts)
    place_T = (chosen_TE.cumsum(dim=0) * chosen_TE).sum(dim=-1)  # 1 for the first token of its expert
    kept_T = place_T <= capacity
    gate_T = torch.where(kept_T, gate_T * scale, 0.0)
    expert_T = torch.where(kept_T, expert_T, num_experts)
    return Routing(gate_T[:, None], expert_T[:, None], probs_TE, logits_TE)


def expert_capacity(num_tokens: int, num_experts: int, capacity_factor: float) -> int:
    """C: tokens one expert may take."""
    return math.ceil(capacity_factor * num_tokens / num_experts)


def sigmoid(logits_TE: Tensor, threshold: float, scale: float = 1.0) -> Routing:
    """Every expert whose probability exceeds the threshold, 0 to E per token, gated by that probability."""
    num_experts = logits_TE.shape[1]
    probs_TE = logits_TE.sigmoid()
    active_TE = probs_TE > threshold
    gate_TE = torch.where(active_TE, probs_TE * scale, 0.0)
    every_expert = torch.arange(num_experts, device=logits_TE.device)
    expert_TE = torch.where(active_TE, every_expert, num_experts)
    return Routing(gate_TE, expert_TE, probs_TE, logits_TE)


def tokens_per_expert(expert_TK: Tensor, num_experts: int) -> Tensor:
    """count_E: tokens each expert took; the id num_experts is not counted."""
    every_expert = torch.arange(num_experts, device=expert_TK.device)
    return (expert_TK.reshape(-1, 1) == every_expert).sum(dim=0)


def balance_loss(routing: Routing, before_capacity: bool = False) -> Tensor:
    """Load-balancing loss of the Switch Transformer (arXiv 2101.03961, eq. 4): E * sum of share * mean probability.

    1 per expert of a token when the load is even, as in transformers' Mixtral (k at top-k). `before_capacity` counts the
    choices rather than what capacity left of them: a full expert must not look balanced.
    """
    num_tokens, num_experts = routing.probs_TE.shape
    chosen_TK = routing.probs_TE.argmax(dim=-1, keepdim=True) if before_capacity else routing.expert_TK
    share_E = tokens_per_expert(chosen_TK, num_experts) / num_tokens
    # sigmoid probabilities do not sum to one; DeepSeek-V3 (arXiv 2412.19437, eq. 17-20) normalises them for this loss
    probability_TE = routing.probs_TE / routing.probs_TE.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_SUM)
    return num_experts * (share_E * probability_TE.mean(dim=0)).sum()


def z_loss(logits_TE: Tensor) -> Tensor:
    """Mean squared log-partition of the logits: keeps them small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return logits_TE.logsumexp(dim=-1).square().mean()
