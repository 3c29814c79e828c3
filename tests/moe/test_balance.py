"""Balance losses and z-losses, compared with sums by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.moe.balance import balance_losses, weighted_sum, z_losses
from moebius.moe.layer import MoE
from moebius.moe.router import softmax_topk, switch
from moebius.moe.statistics import LayerStats, layer_stats
from tests.model.tiny import B, D, S, tiny
from tests.moe.routers import LOGITS, E, T, losses_of, router_of

VARIANTS: dict[str, dict[str, Any]] = {
    "top-1": {},
    "top-2": {"router_top_k": 2},
    "top-2 of sigmoids": {"router_top_k": 2, "router_score": "sigmoid"},
    "switch": {"router_type": "switch", "capacity_factor": float(E)},
    "sigmoid": {"router_type": "sigmoid", "base_expansion": 1.0},
}


def balance_by_hand(chosen: list[list[int]], probs: list[list[float]], num_experts: int) -> float:
    """Return equation 4 of the Switch Transformer: E times the sum of share times probability."""
    loss = 0.0
    for expert in range(num_experts):
        share = sum(row.count(expert) for row in chosen) / len(chosen)
        loss += share * sum(row[expert] / sum(row) for row in probs) / len(probs)
    return num_experts * loss


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "global_batch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_scope_of_the_balance_loss_by_hand(variant, scope):
    config = tiny(**VARIANTS[variant], aux_loss_scope=scope)
    moe = MoE(config, E, 64, lambda x_TD, routing, weights: x_TD)
    assert moe.router is not None
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    x_BSD = torch.randn(B, S, D)
    _, stats = moe(x_BSD)
    routing = moe.router(x_BSD.flatten(0, 1))
    chosen, probs = routing.expert_TK.tolist(), routing.probs_TE.double().tolist()
    whole = balance_by_hand(chosen, probs, E)
    sequences = [
        balance_by_hand(chosen[b * S : (b + 1) * S], probs[b * S : (b + 1) * S], E)
        for b in range(B)
    ]
    expected = sum(sequences) / B if scope == "sequence" else whole
    assert abs(whole - sum(sequences) / B) > 0.01
    assert balance_losses([stats]).tolist() == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize(("balanced", "expected"), [(True, 1.0), (False, float(E))])
def test_balance_loss_is_1_when_even_and_e_at_collapse(balanced, expected):
    logits = torch.eye(E).repeat(4, 1) * 100 if balanced else torch.eye(E)[:1].repeat(20, 1) * 100
    balance, _ = losses_of(softmax_topk(logits, 1, renormalize=False))
    assert balance.item() == pytest.approx(expected)
    balance, _ = losses_of(switch(logits, capacity=2), router_type="switch")
    assert balance.item() == pytest.approx(expected)


def stats_of(num_experts: int, groups: int, seed: int) -> LayerStats:
    """Return the statistics of 12 tokens that choose one of `num_experts` experts."""
    generator = torch.Generator().manual_seed(seed)
    router = router_of(num_experts)
    routing = router.route(torch.randn(12, num_experts, generator=generator))
    return layer_stats(router, routing, groups)


def test_layers_with_different_numbers_of_experts_do_not_disturb_each_other():
    layers = [stats_of(3, 4, seed=0), stats_of(7, 4, seed=1), stats_of(5, 4, seed=2)]
    alone = torch.cat([balance_losses([layer]) for layer in layers])
    torch.testing.assert_close(balance_losses(layers), alone)


def test_the_counts_of_a_larger_batch_replace_the_micro_batchs_own():
    """Expert 0 of each layer took the whole batch, so only its mean probability counts."""
    layers = [stats_of(3, 1, seed=0), stats_of(5, 1, seed=1)]
    batch_X = torch.tensor([100.0, 0, 0, 100, 80, 0, 0, 0, 0, 80])
    passed: list[Tensor] = []

    def over_batch(counts_X: Tensor) -> Tensor:
        passed.append(counts_X)
        return batch_X

    balance_M = balance_losses(layers, over_batch)
    mean_probabilities = [layer.probability_PE[0, 0].item() / 12 for layer in layers]
    expected = [3 * mean_probabilities[0], 5 * mean_probabilities[1]]
    assert balance_M.tolist() == pytest.approx(expected)
    own = [[*layer.chosen_PE[0].tolist(), 12.0] for layer in layers]
    assert passed[0].tolist() == own[0] + own[1]


def test_the_z_loss_by_hand():
    layers, expected = [], []
    for scale in (1, 3):
        routing = softmax_topk(LOGITS * scale, 1, renormalize=False)
        layers.append(layer_stats(router_of(), routing, groups=1))
        log_partition = [row.exp().sum().log().item() for row in LOGITS.double() * scale]
        expected.append(sum(value**2 for value in log_partition) / T)
    assert z_losses(layers).tolist() == pytest.approx(expected)


def test_a_coefficient_scales_the_gradient_of_its_layer():
    logits = [torch.randn(T, E, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    router = router_of()
    stats = [layer_stats(router, router.route(logits_TE), 1) for logits_TE in logits]
    coefficients = (0.5, 0.0, 3.0)
    total = weighted_sum(balance_losses(stats), coefficients)
    gradients = torch.autograd.grad(total, logits, retain_graph=True)
    for layer, logits_TE, gradient, coefficient in zip(
        stats, logits, gradients, coefficients, strict=True
    ):
        (alone,) = torch.autograd.grad(balance_losses([layer])[0], logits_TE, retain_graph=True)
        torch.testing.assert_close(gradient, coefficient * alone)


@pytest.mark.parametrize("coefficients", [[0.5, 0.0], [0.5, 0.0, 1.0, 1.0]])
def test_every_layer_needs_a_coefficient(coefficients):
    with pytest.raises(ValueError, match=f"^{len(coefficients)} coefficients for 3 layers"):
        weighted_sum(torch.ones(3), coefficients)
