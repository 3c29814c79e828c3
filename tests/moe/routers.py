"""The routers and logits of the router's tests."""

from typing import Any

import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.moe.balance import balance_losses, z_losses
from moebius.moe.router import Router, Routing
from moebius.moe.statistics import layer_stats

T, D, E, K = 37, 24, 5, 3
LOGITS = torch.randn(T, E, generator=torch.Generator().manual_seed(0)) * 2
TIES = (LOGITS / 2).round()  # many tokens have several highest logits
BIAS = torch.tensor([0.3, -0.2, 0.0, 0.15, -0.25])

VARIANTS: dict[str, dict[str, Any]] = {
    "top-1": {},
    "top-3": {"router_top_k": K},
    "top-3 not renormalized": {"router_top_k": K, "renormalize_gates": False},
    "top-1 of sigmoids": {"router_score": "sigmoid"},
    "top-3 of sigmoids": {"router_score": "sigmoid", "router_top_k": K},
    "switch": {"router_type": "switch", "capacity_factor": 1.0},
    "sigmoid": {"router_type": "sigmoid"},
}


def router_of(num_experts: int = E, bias_E: Tensor | None = None, **changes: Any) -> Router:
    """Return a router whose weights are so large that its logits spread like LOGITS."""
    settings = {
        "dim": D,
        "num_heads": 2,
        "num_kv_heads": 1,
        "num_experts": num_experts,
        "base_expansion": 1.0,
        **changes,
    }
    router = Router(ModelConfig(**settings), num_experts)
    torch.nn.init.normal_(router.weight_ED, std=2.0)
    if bias_E is not None:
        router.bias_E.copy_(bias_E)
    return router


def losses_of(routing: Routing, **changes: Any) -> tuple[Tensor, Tensor]:
    """Return the balance loss and the z-loss of one layer with this routing."""
    stats = layer_stats(router_of(routing.logits_TE.shape[1], **changes), routing, groups=1)
    return balance_losses([stats])[0], z_losses([stats])[0]
