"""Routers: logits in, `Routing` out. All arithmetic is float32 or wider; nothing is stored between calls."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import ModelConfig

ROUNDING = 1e-6  # 1.1 * 100 / 10 is 11.000000000000002 in floating point
SMALLEST_SUM = 1e-20  # of a token's sigmoid probabilities, which may all be 0 in float32

Score = Literal["softmax", "sigmoid"]
Drop = Literal["last", "lowest_gate"]


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

    bias_E enters the choice of experts, never their gates: loss-free balancing (Wang et al. 2024, arXiv 2408.15664;
    DeepSeek-V3). Zero unless `shift_bias` or an alarm moves it.
    """

    bias_E: Tensor

    def __init__(self, config: ModelConfig, num_experts: int):
        super().__init__()
        self.config = config
        self.num_experts = num_experts
        self.weight_ED = nn.Parameter(torch.empty(num_experts, config.dim))
        self.register_buffer("bias_E", torch.zeros(num_experts))

    def forward(self, x_TD: Tensor) -> Routing:
        with torch.autocast(x_TD.device.type, enabled=False):
            wide_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
            if self.training and self.config.router_jitter:
                jitter = self.config.router_jitter
                wide_TD = wide_TD * torch.empty_like(wide_TD).uniform_(1 - jitter, 1 + jitter)
            logits_TE = F.linear(wide_TD, self.weight_ED.to(wide_TD.dtype)) / math.sqrt(self.config.dim)
            return self.route(logits_TE)

    def route(self, logits_TE: Tensor) -> Routing:
        """The choice alone, so that it can be held against other implementations."""
        config = self.config
        scale = config.gate_factor(self.num_experts)
        if config.router_type == "sigmoid":
            return sigmoid(logits_TE, config.router_threshold, scale, self.bias_E)
        if config.router_type == "switch":
            factor = config.capacity_factor if self.training else config.eval_capacity_factor or config.capacity_factor
            capacity = expert_capacity(logits_TE.shape[0], self.num_experts, factor)
            return switch(logits_TE, capacity, scale, self.bias_E, config.capacity_drop)
        k, score = config.router_top_k, config.router_score
        return softmax_topk(logits_TE, k, config.renormalize_gates, scale, self.bias_E, score)

    def chosen(self, routing: Routing) -> Tensor:
        """expert_TK as chosen, before capacity dropped anyone: a full expert must not look balanced."""
        if self.config.router_type != "switch":
            return routing.expert_TK
        return (routing.probs_TE + self.bias_E).argmax(dim=-1, keepdim=True)

    @torch.no_grad()
    def shift_bias(self, chosen_E: Tensor, rate: float, is_skipped: Tensor | None = None) -> None:
        """DeepSeek-V3's update after a step: an expert chosen more often than the mean loses `rate`, one chosen less often
        gains it. Then the mean is taken off: only differences matter, and the sigmoid router's threshold must not drift.

        is_skipped: a scalar on the device; if true, nothing changes.
        """
        count_E = chosen_E.to(self.bias_E.dtype)
        shifted_E = self.bias_E + rate * (count_E.mean() - count_E).sign()
        shifted_E -= shifted_E.mean()
        self.bias_E.copy_(shifted_E if is_skipped is None else torch.where(is_skipped, self.bias_E, shifted_E))


def softmax_topk(
    logits_TE: Tensor,
    k: int,
    renormalize: bool,
    scale: float = 1.0,
    bias_E: Tensor | None = None,
    score: Score = "softmax",
) -> Routing:
    """Exactly k experts per token; the gate is the expert's probability (Shazeer et al. 2017, Mixtral), or with
    score="sigmoid" its own sigmoid (DeepSeek-V3, arXiv 2412.19437, eq. 12-16).

    At k = 1 the gate is never renormalised: it would be the constant 1 and the router would get no gradient.
    """
    probs_TE = logits_TE.softmax(dim=-1) if score == "softmax" else logits_TE.sigmoid()
    expert_TK = _biased(probs_TE, bias_E).topk(k, dim=-1).indices
    gate_TK = probs_TE.gather(-1, expert_TK)
    if renormalize and k > 1:
        gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_SUM)
    return Routing(gate_TK * scale, expert_TK, probs_TE, logits_TE)


def switch(logits_TE: Tensor, capacity: int, scale: float = 1.0, bias_E: Tensor | None = None, drop: Drop = "last") -> Routing:
    """Top-1; of the tokens that choose an expert it takes `capacity`, the others get no expert (Fedus et al. 2021).

    drop="last": first come, first served; a dropped token depends on earlier tokens only, so causality holds.
    drop="lowest_gate": the highest gates are served (V-MoE's batch prioritised routing, Riquelme et al. 2021).
    """
    num_experts = logits_TE.shape[1]
    probs_TE = logits_TE.softmax(dim=-1)
    expert_T = _biased(probs_TE, bias_E).argmax(dim=-1)
    gate_T = probs_TE.gather(-1, expert_T[:, None])[:, 0]
    if drop == "last":
        place_T = place_in_expert(expert_T, num_experts)
    else:
        order_T = gate_T.argsort(descending=True, stable=True)
        place_T = torch.empty_like(expert_T).scatter_(0, order_T, place_in_expert(expert_T[order_T], num_experts))
    kept_T = place_T < capacity
    gate_T = torch.where(kept_T, gate_T * scale, 0.0)
    expert_T = torch.where(kept_T, expert_T, num_experts)
    return Routing(gate_T[:, None], expert_T[:, None], probs_TE, logits_TE)


def place_in_expert(expert_T: Tensor, num_experts: int) -> Tensor:
    """place_T: how many earlier tokens chose the same expert.

    One running count along all experts' rows laid end to end: GPUs scan one long row fast, and T short ones slowly.
    """
    every_expert = torch.arange(num_experts, device=expert_T.device)
    chosen_ET = (expert_T == every_expert[:, None]).to(torch.int32)
    running_ET = chosen_ET.flatten().cumsum(dim=0).view_as(chosen_ET)
    before_E = running_ET[:, -1] - chosen_ET.sum(dim=1)
    return running_ET.gather(0, expert_T[None])[0] - before_E[expert_T] - 1


def expert_capacity(num_tokens: int, num_experts: int, capacity_factor: float) -> int:
    """C: tokens one expert may take."""
    return math.ceil(capacity_factor * num_tokens / num_experts - ROUNDING)


def sigmoid(logits_TE: Tensor, threshold: float, scale: float = 1.0, bias_E: Tensor | None = None) -> Routing:
    """Every expert whose probability exceeds the threshold, 0 to E per token, gated by that probability."""
    num_experts = logits_TE.shape[1]
    probs_TE = logits_TE.sigmoid()
    active_TE = _biased(probs_TE, bias_E) > threshold
    gate_TE = torch.where(active_TE, probs_TE * scale, 0.0)
    every_expert = torch.arange(num_experts, device=logits_TE.device)
    expert_TE = torch.where(active_TE, every_expert, num_experts)
    return Routing(gate_TE, expert_TE, probs_TE, logits_TE)


def who_chose(expert_TK: Tensor, num_experts: int) -> Tensor:
    """chosen_TE: whether the expert is among the token's; the id num_experts is none."""
    every_expert = torch.arange(num_experts, device=expert_TK.device)
    return (expert_TK[..., None] == every_expert).any(dim=1)


def summing_to_one(probs_TE: Tensor) -> Tensor:
    """Sigmoid probabilities made a distribution, as DeepSeek-V3 does for its balance loss (arXiv 2412.19437, eq. 17-20)."""
    return probs_TE / probs_TE.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_SUM)


def _biased(probs_TE: Tensor, bias_E: Tensor | None) -> Tensor:
    return probs_TE.detach() if bias_E is None else probs_TE.detach() + bias_E
