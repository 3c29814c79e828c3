"""What is written down about each router agrees with what the router does."""

from typing import get_args

import pytest
import torch

from moebius.config import ModelConfig, RouterType
from moebius.config.routers import ROUTERS
from moebius.errors import ConfigError
from moebius.model.transformer import routed_layers, seeded
from moebius.moe.router import Router, Routing

T, D, E = 64, 16, 6
CASES = [
    (name, top_k)
    for name, record in ROUTERS.items()
    for top_k in (1, 3, E)
    if top_k == 1 or not record.is_top_1
]


def config_of(name: str, **changes: object) -> ModelConfig:
    settings = {
        "vocab_size": 61,
        "dim": D,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "num_experts": E,
        "base_expansion": 1.0,
        "router_type": name,
        **changes,
    }
    return ModelConfig(**settings)  # pyright: ignore[reportArgumentType]


def routed(logits_TE: torch.Tensor, name: str, **changes: object) -> Routing:
    return Router(config_of(name, **changes), logits_TE.shape[1]).route(logits_TE)


def taken(routing: Routing, num_experts: int = E) -> list[int]:
    """Return how many experts each token has."""
    return (routing.expert_TK < num_experts).sum(dim=1).tolist()


def random_logits(num_experts: int = E) -> torch.Tensor:
    return torch.randn(T, num_experts, generator=torch.Generator().manual_seed(0))


def test_every_router_can_be_configured():
    assert set(get_args(RouterType)) == set(ROUTERS)


@pytest.mark.parametrize(("name", "top_k"), CASES)
def test_the_most_experts_are_the_slots_of_a_token(name, top_k):
    routing = routed(random_logits(), name, router_top_k=top_k)
    most = ROUTERS[name].most_experts(E, top_k)
    assert routing.expert_TK.shape == routing.gate_TK.shape == (T, most)
    assert max(taken(routing)) <= most


@pytest.mark.parametrize(("name", "top_k"), CASES)
def test_only_a_threshold_lets_the_number_of_experts_vary(name, top_k):
    logits_TE = random_logits()
    logits_TE[0], logits_TE[1] = -9.0, 9.0
    counts = taken(routed(logits_TE, name, router_top_k=top_k, capacity_factor=float(E)))
    if ROUTERS[name].chooses_by_threshold:
        assert counts[:2] == [0, E] and len(set(counts)) > 2
    else:
        assert counts == [top_k] * T


@pytest.mark.parametrize("name", ROUTERS)
def test_only_an_expert_with_a_capacity_refuses_tokens(name):
    """All tokens choose the same expert, which has its even share as its capacity."""
    logits_TE = torch.full((T, E), -9.0)
    logits_TE[:, 2] = 9.0
    routing = routed(logits_TE, name, capacity_factor=1.0)
    accepted = int((routing.expert_TK == 2).sum())
    assert accepted == (-(-T // E) if ROUTERS[name].has_capacity else T)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_for_one_expert_per_token_takes_no_more(name):
    if ROUTERS[name].is_top_1:
        with pytest.raises(ConfigError, match="top-1"):
            config_of(name, router_top_k=2)
    else:
        assert config_of(name, router_top_k=2).router_top_k == 2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("softmax_topk", {}),
        ("softmax_topk", {"router_top_k": 3}),
        ("switch", {"capacity_factor": float(E)}),
        ("sigmoid", {"router_threshold": 0.3}),
        ("sigmoid", {"router_threshold": 0.5}),
    ],
    ids=str,
)
def test_the_expected_experts_are_those_of_an_untrained_router(name, changes):
    config = config_of(name, **changes)
    ((router, _),) = routed_layers(seeded(0, config))
    x_TD = torch.randn(4000, D, generator=torch.Generator().manual_seed(1))
    counts = taken(router(x_TD))
    expected = ROUTERS[name].expected_experts(E, config.router_top_k, config.router_threshold)
    assert sum(counts) / len(counts) == pytest.approx(expected, rel=0.02)


def test_a_top_k_that_exceeds_the_experts_of_a_layer_is_all_of_them():
    assert ROUTERS["softmax_topk"].most_experts(2, 3) == 2
    assert ROUTERS["softmax_topk"].expected_experts(2, 3, 0.5) == 2.0
