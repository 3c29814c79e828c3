"""Sigmoid scores far below what float32 can hold: choice, gates, balance loss and gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.moe.balance import balance_losses
from moebius.moe.router import VANISHED, Router, softmax_topk
from moebius.moe.statistics import layer_stats, who_chose
from moebius.observe.metrics import LayerMetrics, layer_metrics
from tests.moe.routers import BIAS, LOGITS, E, K, T, router_of

LEVELS = [0.0, -20.0, -80.0, -200.0, -700.0]
"""Levels of the logits. Sigmoids in float32 are 0 below -104, and in float64 below -745."""


def plain_normalized(row: list[float]) -> list[float]:
    """Return the sigmoids of some logits divided by their sum, computed from their logarithms."""
    logs = [min(logit, 0.0) - math.log1p(math.exp(-abs(logit))) for logit in row]
    ratios = [math.exp(log - max(logs)) for log in logs]
    return [ratio / sum(ratios) for ratio in ratios]


def routed(logits_TE: Tensor, **changes: Any) -> tuple[Router, Any]:
    router = router_of(router_score="sigmoid", router_top_k=K, **changes)
    return router, router.route(logits_TE)


def loss_of(logits_TE: Tensor, gate_weight_TE: Tensor) -> Tensor:
    """Return a loss of the gates and of the balance: a different weight for each expert's gate."""
    router, routing = routed(logits_TE)
    gates = (routing.gate_TK * gate_weight_TE.gather(1, routing.expert_TK)).sum()
    return gates + balance_losses([layer_stats(router, routing, groups=1)])[0]


@pytest.mark.parametrize("level", [*LEVELS, -1e4])
def test_gates_and_probabilities_by_hand(level):
    logits_TE = LOGITS + level
    router, routing = routed(logits_TE)
    probability_TE = router.distribution(routing)
    for token, row in enumerate(logits_TE.tolist()):
        best = sorted(range(E), key=lambda e, row=row: -row[e])[:K]
        assert sorted(routing.expert_TK[token].tolist()) == sorted(best)
        expected = plain_normalized([row[e] for e in routing.expert_TK[token].tolist()])
        assert routing.gate_TK[token].tolist() == pytest.approx(expected, rel=2e-5)
        assert probability_TE[token].tolist() == pytest.approx(plain_normalized(row), rel=2e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_float32_agrees_with_float64_and_its_definition(level):
    """In float64, these sigmoids can still be divided by their sum."""
    logits_TE = (LOGITS + level).double().requires_grad_()
    weight_TE = torch.randn(T, E, generator=torch.Generator().manual_seed(1)).double()
    score_TE = logits_TE.sigmoid()
    expert_TK = logits_TE.topk(K).indices
    chosen_TK = score_TE.gather(1, expert_TK)
    gate_TK = chosen_TK / chosen_TK.sum(dim=1, keepdim=True)
    share_E = who_chose(expert_TK, E).double().mean(dim=0)
    mean_E = (score_TE / score_TE.sum(dim=1, keepdim=True)).mean(dim=0)
    by_definition = (gate_TK * weight_TE.gather(1, expert_TK)).sum() + E * (share_E * mean_E).sum()
    (expected,) = torch.autograd.grad(by_definition, logits_TE)
    assert expected.abs().max() > 0.1
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-5)):
        ours_TE = logits_TE.detach().to(dtype).requires_grad_()
        loss = loss_of(ours_TE, weight_TE.to(dtype))
        (gradient,) = torch.autograd.grad(loss, ours_TE)
        assert loss.dtype == gradient.dtype == dtype
        torch.testing.assert_close(loss.double(), by_definition.detach(), rtol=tolerance, atol=0)
        torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("is_autocast", [False, True])
def test_the_gradient_does_not_depend_on_how_low_the_scores_are(is_autocast):
    """Far below 0, a sigmoid is an exponential, so that a common shift cancels."""
    weight_TE = torch.randn(T, E, generator=torch.Generator().manual_seed(1))
    quarters_TE = (LOGITS * 4).round() / 4  # exact in float32, even at -10,000
    gradients = []
    for level in (-50.0, -200.0, -1e4):
        logits_TE = (quarters_TE + level).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            loss = loss_of(logits_TE, weight_TE)
        gradients += torch.autograd.grad(loss, logits_TE)
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize("k", [1, 2, E])
@pytest.mark.parametrize("level", [-150.0, -1e4, 40.0])
def test_experts_with_equal_scores_are_chosen_by_their_logits(level, k):
    """Scores of 0 or 1 are equal in float32, but the logits still rank the experts."""
    distinct_TE = torch.stack([torch.randperm(E) for _ in range(T)]) + level
    routing = softmax_topk(distinct_TE, k, renormalize=True, score="sigmoid")
    assert len(routing.probs_TE.unique()) == 1
    assert torch.equal(routing.expert_TK, distinct_TE.argsort(dim=1, descending=True)[:, :k])


def test_a_bias_decides_before_the_logits_of_equal_scores_do():
    distinct_TE = torch.stack([torch.randperm(E) for _ in range(T)]) - 150.0
    routing = softmax_topk(distinct_TE, K, True, bias_E=BIAS, score="sigmoid")
    assert torch.equal(routing.expert_TK, BIAS.topk(K).indices.expand(T, K))


def test_gates_of_softmax_scores_that_only_a_bias_chooses_keep_their_sum():
    """The bias chooses experts whose softmax is 0 in float32."""
    logits_TE = torch.tensor([[0.0, -200.0, -201.0, -1e4, -1e4]])
    bias_E = torch.tensor([-3.0, 2.0, 2.0, 0.0, 0.0])
    routing = softmax_topk(logits_TE, 2, True, bias_E=bias_E)
    gates = dict(zip(routing.expert_TK[0].tolist(), routing.gate_TK[0].tolist(), strict=True))
    assert gates == pytest.approx({1: 1 / (1 + math.exp(-1)), 2: 1 / (1 + math.exp(1))})


def balanced_by_descent(level: float, steps: int) -> list[LayerMetrics]:
    """Return the load, step by step, while the balance loss alone moves the logits.

    At first, two experts of five take almost all tokens. Each step moves a common logit of each
    expert, as an expert's row of the router's weights does.
    """
    shift_E = torch.tensor([level + 3, level + 3, level, level, level], requires_grad=True)
    layers = []
    for _ in range(steps):
        router, routing = routed(LOGITS / 2 + shift_E)
        stats = layer_stats(router, routing, groups=1)
        layers.append(layer_metrics(stats.detached(), None, None, None))
        (gradient_E,) = torch.autograd.grad(balance_losses([stats])[0], shift_E)
        shift_E = (shift_E - 2 * gradient_E).detach().requires_grad_()
    return layers


@pytest.mark.parametrize("level", [-150.0, -1_000.0])
def test_the_balance_loss_evens_the_load_of_scores_that_have_vanished(level):
    first, *_, last = balanced_by_descent(level, steps=60)
    assert first.cv > 0.5 and last.cv < 0.25
    assert first.vanished_share == last.vanished_share == 1.0


def test_what_counts_as_vanished():
    limit = math.log(VANISHED)
    for logit, share in ((limit + 0.1, 0.0), (limit - 0.1, 1.0), (-1e4, 1.0)):
        router, routing = routed(torch.full((T, E), logit))
        stats = layer_stats(router, routing, groups=1)
        assert layer_metrics(stats, None, None, None).vanished_share == share
