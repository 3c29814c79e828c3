"""The routers, which choose the experts of every token.

A router turns logits into a `Routing`. All of its arithmetic is in float32 or wider, even under
autocast, and nothing is stored between calls. Every router has a record in
moebius/config/routers.py and, under the same name, a function in `ROUTES`.

Scores are normalized from their logarithms. The sigmoids of a token whose logits are all below
about -104 are 0 in float32: divided by their sum, they would lose their gradients and with them
the balance loss, which could then no longer bring the logits back.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import ModelConfig
from moebius.config.routers import ROUTERS
from moebius.hardware.backends import runs_router_kernels
from moebius.hardware.precision import wide

ROUNDING = 1e-6
"""Slack when a capacity is rounded up, because 1.1 * 100 / 10 is 11.000000000000002 in floats."""
VANISHED = 1e-7
"""A score below this has vanished: float32 can no longer add it to a bias, and a gate of this size
mutes its expert. Of softmax scores, the largest of a token is never that small."""

MOST_EXPERTS = 1024
"""Most experts whose scores a kernel sorts in registers."""

Score = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """The experts of every token and their weights. All but expert_TK are float32 or wider."""

    gate_TK: Tensor
    """Weight of each assignment in the token's output. It is ignored if there is no expert."""
    expert_TK: Tensor
    """Index of each assignment's expert. E, the number of experts, means "no expert": a full
    expert dropped the token, or the expert's probability is not above the threshold."""
    probs_TE: Tensor
    """Probability of each expert, for the balance loss and the statistics."""
    logits_TE: Tensor
    """Logits of the experts, for the z-loss and the statistics."""


def uses_kernels(values_TX: Tensor, num_experts: int) -> bool:
    """Return whether moebius/kernels routes these tokens, and counts how they were routed.

    The functions of this file and of statistics.py are the readable reference.
    """
    return (
        runs_router_kernels(values_TX)
        and values_TX.dtype == torch.float32
        and 1 <= num_experts <= MOST_EXPERTS
        and len(values_TX) > 0
    )


class Router(nn.Module):
    """A linear layer that scores the experts, and the choice among them by the scores.

    The logits are x @ weight.T / sqrt(D). Without the division, one step of Adam could move a
    logit by lr * D, because it moves each of the D entries of a row by about the learning rate lr.
    That would add up to several units before the warm-up is over, and the first experts to get
    ahead would take all tokens. With the division, a step moves it by at most lr * sqrt(D). muP
    also divides the output of a layer that reads a wide input (arXiv 2203.03466).

    bias_E is added to the probabilities when experts are chosen, and never changes a gate. This is
    loss-free balancing (Wang et al. 2024, arXiv 2408.15664; DeepSeek-V3). The bias stays zero
    unless `shift_bias` or an alarm moves it.
    """

    bias_E: Tensor

    def __init__(self, config: ModelConfig, num_experts: int):
        """Build a router with an uninitialized weight and no bias."""
        super().__init__()
        self.config = config
        self.record = ROUTERS[config.router_type]
        self.num_experts = num_experts
        self.weight_ED = nn.Parameter(torch.empty(num_experts, config.dim))
        self.register_buffer("bias_E", torch.zeros(num_experts))

    def forward(self, x_TD: Tensor) -> Routing:
        """Return the routing of the tokens x_TD."""
        device = x_TD.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            wide_TD = wide(x_TD)
            if self.training and self.config.router_jitter:
                jitter = self.config.router_jitter
                wide_TD = wide_TD * torch.empty_like(wide_TD).uniform_(1 - jitter, 1 + jitter)
            if uses_kernels(wide_TD, self.num_experts):
                return self._route_by_kernels(wide_TD, narrow or x_TD.dtype)
            product_TE = F.linear(wide_TD, self.weight_ED.to(wide_TD.dtype))
            return self.route(product_TE / math.sqrt(self.config.dim))

    def route(self, logits_TE: Tensor) -> Routing:
        """Return the routing that the configured type of router derives from the logits."""
        return ROUTES[self.config.router_type](self, wide(logits_TE))

    def _route_by_kernels(self, wide_TD: Tensor, narrow: torch.dtype) -> Routing:
        """Return what `forward` returns, in a few launches on a GPU.

        For the backward pass the tokens are kept as `narrow`, in which the experts' products keep
        them, too, and their gradient is computed in it. The logits are those of the wide tokens.
        """
        from moebius.kernels import choice, router

        logits_TE = router.logits(wide_TD, self.weight_ED, wide_TD.to(narrow))
        config, scores_by_sigmoid = self.config, self.config.has_sigmoid_scores
        k = 0 if self.record.chooses_by_threshold else config.router_top_k
        rule = choice.Rule(
            k=k,
            is_sigmoid=scores_by_sigmoid,
            renormalizes=config.renormalize_gates and k > 1,
            scale=self.gate_factor,
            threshold=config.router_threshold,
            capacity=self._capacity(len(wide_TD)) if self.record.has_capacity else -1,
        )
        gate_TK, expert_TK = choice.choose(logits_TE, self.bias_E, rule)
        probs_TE = logits_TE.sigmoid() if scores_by_sigmoid else logits_TE.softmax(dim=-1)
        return Routing(gate_TK, expert_TK, probs_TE, logits_TE)

    def _capacity(self, num_tokens: int) -> int:
        """Return the number of tokens that one expert may take of these."""
        return expert_capacity(num_tokens, self.num_experts, self.capacity_factor)

    @property
    def gate_factor(self) -> float:
        """Factor on every gate."""
        return self.config.gate_factor(self.num_experts)

    @property
    def capacity_factor(self) -> float:
        """Capacity of an expert as a multiple of its even share, in training or in evaluation."""
        if self.training or not self.config.eval_capacity_factor:
            return self.config.capacity_factor
        return self.config.eval_capacity_factor

    def distribution(self, routing: Routing) -> Tensor:
        """Return probability_TE, the probabilities of the experts with a sum of 1 for each token.

        Sigmoid scores are divided by the token's sum, as DeepSeek-V3 does for its balance loss
        (arXiv 2412.19437, eq. 17-20).
        """
        if not self.config.has_sigmoid_scores:
            return routing.probs_TE
        return F.logsigmoid(routing.logits_TE).softmax(dim=-1)

    def chosen(self, routing: Routing) -> Tensor:
        """Return expert_TK as it was chosen, before full experts dropped tokens.

        The balance loss counts these, because an expert that too many tokens choose must not look
        balanced just because it is full.
        """
        if not self.record.has_capacity:
            return routing.expert_TK
        return (routing.probs_TE + self.bias_E).argmax(dim=-1, keepdim=True)

    @torch.no_grad()
    def shift_bias(self, chosen_E: Tensor, rate: float, is_skipped: Tensor | None = None) -> None:
        """Move the bias towards an even load, as DeepSeek-V3 does after each step.

        An expert that was chosen more often than the mean loses `rate`, one that was chosen less
        often gains it. Then the mean of the bias is subtracted: only differences matter, and the
        threshold of the sigmoid router must not drift.

        chosen_E: how often each expert was chosen.
        is_skipped: a scalar on the device; where it is true nothing changes.
        """
        count_E = chosen_E.to(self.bias_E.dtype)
        shifted_E = self.bias_E + rate * (count_E.mean() - count_E).sign()
        shifted_E -= shifted_E.mean()
        if is_skipped is not None:
            shifted_E = torch.where(is_skipped, self.bias_E, shifted_E)
        self.bias_E.copy_(shifted_E)


def _route_softmax_topk(router: Router, logits_TE: Tensor) -> Routing:
    config = router.config
    return softmax_topk(
        logits_TE,
        config.router_top_k,
        config.renormalize_gates,
        router.gate_factor,
        router.bias_E,
        config.router_score,
    )


def _route_switch(router: Router, logits_TE: Tensor) -> Routing:
    capacity = router._capacity(len(logits_TE))
    return switch(logits_TE, capacity, router.gate_factor, router.bias_E)


def _route_sigmoid(router: Router, logits_TE: Tensor) -> Routing:
    return sigmoid(logits_TE, router.config.router_threshold, router.gate_factor, router.bias_E)


ROUTES: dict[str, Callable[[Router, Tensor], Routing]] = {
    "softmax_topk": _route_softmax_topk,
    "switch": _route_switch,
    "sigmoid": _route_sigmoid,
}
"""The routers by name. moebius/config/routers.py has a record under each of these names."""


def softmax_topk(
    logits_TE: Tensor,
    k: int,
    renormalize: bool,
    scale: float = 1.0,
    bias_E: Tensor | None = None,
    score: Score = "softmax",
) -> Routing:
    """Return the routing of each token to the k experts with the highest biased probabilities.

    A gate is `scale` times the expert's probability (Shazeer et al. 2017, Mixtral) or, with the
    score "sigmoid", times the sigmoid of its own logit (DeepSeek-V3, arXiv 2412.19437, eq. 12-16).
    renormalize: divide a token's gates by their sum before scaling. With k = 1 this is never done:
    the gate would be the constant 1, and the router would get no gradient.
    """
    if score == "softmax":
        probs_TE = logits_TE.softmax(dim=-1)
        expert_TK = _biased(probs_TE, bias_E).topk(k, dim=-1).indices
    else:
        probs_TE = logits_TE.sigmoid()
        expert_TK = _best_sigmoids(logits_TE, _biased(probs_TE, bias_E), k)
    if renormalize and k > 1:
        # Softmax scores are exp(logit) times a factor, which cancels.
        log_score_TE = logits_TE if score == "softmax" else F.logsigmoid(logits_TE)
        gate_TK = log_score_TE.gather(-1, expert_TK).softmax(dim=-1)
    else:
        gate_TK = probs_TE.gather(-1, expert_TK)
    return Routing(gate_TK * scale, expert_TK, probs_TE, logits_TE)


def _best_sigmoids(logits_TE: Tensor, biased_TE: Tensor, k: int) -> Tensor:
    """Return expert_TK, the experts with the highest biased scores and, among equals, logits.

    Different logits can have equal scores in float32, because sigmoids round to 0 or 1, or are too
    small to change the bias that is added. If such experts were chosen by their number, the first
    k would take all tokens, and no change of the logits could move the choice.
    """
    by_logit_TE = logits_TE.detach().argsort(dim=-1, descending=True, stable=True)
    order_TE = biased_TE.gather(-1, by_logit_TE).argsort(dim=-1, descending=True, stable=True)
    return by_logit_TE.gather(-1, order_TE[:, :k])


def switch(
    logits_TE: Tensor, capacity: int, scale: float = 1.0, bias_E: Tensor | None = None
) -> Routing:
    """Return the routing of each token to one expert with a capacity (Fedus et al. 2021).

    An expert takes the first `capacity` tokens that choose it; the others get no expert. Because
    tokens are served in their order, whether a token is dropped depends only on earlier tokens,
    and the model stays causal.
    """
    num_experts = logits_TE.shape[1]
    probs_TE = logits_TE.softmax(dim=-1)
    expert_T = _biased(probs_TE, bias_E).argmax(dim=-1)
    gate_T = probs_TE.gather(-1, expert_T[:, None])[:, 0]
    kept_T = place_in_expert(expert_T, num_experts) < capacity
    gate_T = torch.where(kept_T, gate_T * scale, 0.0)
    expert_T = torch.where(kept_T, expert_T, num_experts)
    return Routing(gate_T[:, None], expert_T[:, None], probs_TE, logits_TE)


def place_in_expert(expert_T: Tensor, num_experts: int) -> Tensor:
    """Return place_T, the number of earlier tokens that chose the same expert."""
    expert_E = torch.arange(num_experts, device=expert_T.device)
    chosen_ET = (expert_T == expert_E[:, None]).to(torch.int32)
    # One running count over the concatenated rows of all experts, because GPUs scan one long row
    # faster than many short ones.
    running_ET = chosen_ET.flatten().cumsum(dim=0).view_as(chosen_ET)
    before_E = running_ET[:, -1] - chosen_ET.sum(dim=1)
    return running_ET.gather(0, expert_T[None])[0] - before_E[expert_T] - 1


def expert_capacity(num_tokens: int, num_experts: int, capacity_factor: float) -> int:
    """Return the number of tokens that one expert may take: its even share times the factor."""
    return math.ceil(capacity_factor * num_tokens / num_experts - ROUNDING)


def sigmoid(
    logits_TE: Tensor, threshold: float, scale: float = 1.0, bias_E: Tensor | None = None
) -> Routing:
    """Return the routing of each token to every expert above the threshold, from none to all.

    The biased probability is compared with the threshold; the gate is `scale` times the unbiased
    probability. Every expert has its own slot (K = E).
    """
    num_experts = logits_TE.shape[1]
    probs_TE = logits_TE.sigmoid()
    active_TE = _biased(probs_TE, bias_E) > threshold
    gate_TE = torch.where(active_TE, probs_TE * scale, 0.0)
    expert_E = torch.arange(num_experts, device=logits_TE.device)
    expert_TE = torch.where(active_TE, expert_E, num_experts)
    return Routing(gate_TE, expert_TE, probs_TE, logits_TE)


def _biased(probs_TE: Tensor, bias_E: Tensor | None) -> Tensor:
    """Return the probabilities by which experts are chosen, without a gradient."""
    return probs_TE.detach() if bias_E is None else probs_TE.detach() + bias_E
