"""Routing statistics, compared with counts token by token."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import ParallelConfig
from moebius.config.routers import ROUTERS
from moebius.model.transformer import routed_layers, seeded
from moebius.moe.balance import balance_losses
from moebius.moe.router import Router, Routing
from moebius.moe.statistics import LayerStats, flat, layer_stats, summed, unflat
from moebius.parallel.layout import lay_out
from tests.model.tiny import B, S, random_tokens, tiny

T, E, K, GROUPS = 44, 5, 3, 4
BIAS = torch.tensor([0.3, -0.2, 0.0, 0.15, -0.25])
WITH_GRADIENT = {"probability_PE", "squared_log_partition"}

VARIANTS: dict[str, dict[str, Any]] = {
    "top-1": {},
    "top-3": {"router_top_k": K, "gate_scale": 2.5},
    "top-3 of sigmoids": {
        "router_score": "sigmoid",
        "router_top_k": K,
        "renormalize_gates": False,
    },
    "switch": {"router_type": "switch", "capacity_factor": 0.8},
    "sigmoid": {"router_type": "sigmoid", "router_threshold": 0.7, "base_expansion": 1.0},
}


def drawn(tokens: int = T, experts: int = E, seed: int = 0) -> Tensor:
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)) * 2


def routed(
    logits_TE: Tensor, bias_E: Tensor | None = None, **changes: Any
) -> tuple[Router, Routing]:
    router = Router(tiny(**changes), logits_TE.shape[1])
    if bias_E is not None:
        router.bias_E.copy_(bias_E)
    return router, router.route(logits_TE)


def has_capacity(router: Router) -> bool:
    return ROUTERS[router.config.router_type].has_capacity


def stats_of(logits_TE: Tensor, groups: int = 1, **changes: Any) -> LayerStats:
    return layer_stats(*routed(logits_TE, **changes), groups)


def by_hand(router: Router, routing: Routing, groups: int) -> dict[str, Any]:
    """Return the statistics by name, counted token by token in Python floats."""
    num_experts = router.num_experts
    size = len(routing.expert_TK) // groups
    sums: dict[str, Any] = dict.fromkeys(LayerStats._fields, 0.0)
    sums["tokens_per_expert_E"] = [0] * num_experts
    for name in ("chosen_PE", "probability_PE"):
        sums[name] = [[0.0] * num_experts for _ in range(groups)]
    rows = zip(*(values.tolist() for values in routing), strict=True)
    for token, (gates, experts, probs, logits) in enumerate(rows):
        taken = [expert for expert in experts if expert < num_experts]
        group, total = token // size, sum(probs)
        if has_capacity(router):
            biased = [p + b for p, b in zip(probs, router.bias_E.tolist(), strict=True)]
            chosen = [biased.index(max(biased))]
        else:
            chosen = taken
        for expert in taken:
            sums["tokens_per_expert_E"][expert] += 1
        for expert in chosen:
            sums["chosen_PE"][group][expert] += 1
        for expert, p in enumerate(probs):
            sums["probability_PE"][group][expert] += p / total
        sums["squared_log_partition"] += math.log(sum(math.exp(logit) for logit in logits)) ** 2
        entropy = sum(-p / total * math.log(p / total) for p in probs)
        sums["entropy"] += entropy / math.log(num_experts)
        assignments = zip(gates, experts, strict=True)
        sums["gate"] += sum(gate for gate, expert in assignments if expert < num_experts)
        sums["unrouted"] += not taken
        sums["dropped"] += len(chosen) - len(taken)
        sums["tokens"] += 1
    return sums


@pytest.mark.parametrize("groups", [1, GROUPS])
@pytest.mark.parametrize("bias_E", [None, BIAS], ids=["no bias", "bias"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_figure_by_hand(variant, bias_E, groups):
    router, routing = routed(drawn(), bias_E, **VARIANTS[variant])
    stats = layer_stats(router, routing, groups)
    expected = by_hand(router, routing, groups)
    for name, figure in stats._asdict().items():
        torch.testing.assert_close(
            figure,
            torch.tensor(expected[name], dtype=torch.float32),
            msg=lambda t, n=name: f"{n}: {t}",
        )
    assert (stats.dropped > 0) == has_capacity(router)
    assert (stats.unrouted > 0) == (variant in ("switch", "sigmoid"))
    if has_capacity(router):
        assert stats.tokens_per_expert_E.max() <= math.ceil(0.8 * T / E)
        assert stats.chosen_PE.sum() == T


def test_one_token_and_one_expert():
    for changes in VARIANTS.values():
        router, routing = routed(torch.tensor([[2.0]]), **{**changes, "router_top_k": 1})
        stats = layer_stats(router, routing, groups=1)
        assert stats.tokens_per_expert_E.tolist() == [1]
        assert stats.chosen_PE.tolist() == [[1]] and stats.tokens == 1
        assert (stats.entropy, stats.unrouted, stats.dropped) == (0, 0, 0)
        assert stats.gate == routing.gate_TK.sum()


@pytest.mark.parametrize("variant", VARIANTS)
def test_entropy_is_1_when_undecided_and_0_when_decided(variant):
    undecided = stats_of(torch.full((T, E), 1.5), **VARIANTS[variant])
    assert (undecided.entropy / T).item() == pytest.approx(1, rel=1e-5)
    decided = stats_of(torch.eye(E)[drawn().argmax(-1)] * 200 - 100, **VARIANTS[variant])
    assert (decided.entropy / T).item() == pytest.approx(0, abs=1e-5)
    between = stats_of(torch.tensor([[60.0, 60, -60, -60, -60]]), **VARIANTS[variant])
    assert between.entropy.item() == pytest.approx(math.log(2) / math.log(E), rel=1e-5)


def test_a_full_expert_does_not_look_balanced():
    """All tokens choose expert 3, which takes only a fifth of them, and chosen_PE shows this."""
    logits = torch.eye(E)[3].expand(T, E) * 9
    stats = stats_of(logits, router_type="switch", capacity_factor=1.0)
    assert stats.tokens_per_expert_E.tolist() == [0, 0, 0, 9, 0]
    assert stats.chosen_PE.tolist() == [[0, 0, 0, T, 0]]
    assert stats.dropped == stats.unrouted == T - 9


def test_tokens_below_the_threshold_are_unrouted_but_not_dropped():
    stats = stats_of(
        torch.tensor([[0.0, 3, -9], [-9, -9, -9], [-9, 1, 1]]),
        router_type="sigmoid",
        base_expansion=1.0,
    )
    assert stats.tokens_per_expert_E.tolist() == [0, 2, 1]
    assert stats.chosen_PE.tolist() == [[0, 2, 1]]
    assert (stats.unrouted, stats.dropped, stats.tokens) == (1, 0, 3)
    assert stats.gate.item() == pytest.approx(sum(1 / (1 + math.exp(-x)) for x in (3, 1, 1)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_that_are_not_finite_are_counted(variant):
    logits = drawn()
    logits[2, 1] = math.nan
    logits[5] = math.inf
    logits[7, 0] = -math.inf
    assert stats_of(logits, **VARIANTS[variant]).not_finite == 1 + E + 1
    assert stats_of(drawn(), **VARIANTS[variant]).not_finite == 0


@pytest.mark.parametrize("level", [-30.0, -200.0, -1e4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_whose_scores_all_vanish_are_counted(variant, level):
    logits = drawn()
    logits[3:10] += level
    logits[3, 1] = -10.0  # one score of about 5e-5 is left
    is_sigmoid = "sigmoid" in variant
    assert stats_of(logits, **VARIANTS[variant]).vanished == (6 if is_sigmoid else 0)


def with_gradient(stats: LayerStats) -> set[str]:
    return {name for name, figure in stats._asdict().items() if figure.requires_grad}


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_losses_have_a_gradient(variant):
    stats = stats_of(drawn().requires_grad_(), GROUPS, **VARIANTS[variant])
    assert with_gradient(stats) == WITH_GRADIENT
    assert {figure.dtype for figure in stats} == {torch.float32}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("switch")])
def test_micro_batches_add_up(variant):
    """This does not hold for the switch router, whose capacity counts per micro-batch."""
    logits_TE = drawn()
    parts = [stats_of(part_TE, **VARIANTS[variant]) for part_TE in logits_TE.chunk(GROUPS)]
    whole = stats_of(logits_TE, **VARIANTS[variant])
    for name, ours, expected in zip(LayerStats._fields, summed(parts), whole, strict=True):
        torch.testing.assert_close(ours, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_sums():
    parts = [stats_of(drawn(seed=seed), GROUPS, **VARIANTS["switch"]) for seed in range(3)]
    for total in (parts[0].added(parts[1]).added(parts[2]), summed(parts)):
        for name, figure in total._asdict().items():
            expected = torch.stack([getattr(part, name) for part in parts]).sum(dim=0)
            torch.testing.assert_close(figure, expected)
    assert summed(parts[:1]) == parts[0]
    assert summed(parts).chosen_PE.shape == (GROUPS, E)


def test_detached_keeps_figures_without_graph_and_groups():
    stats = stats_of(drawn().requires_grad_(), GROUPS, **VARIANTS["top-3"])
    whole = stats_of(drawn(), **VARIANTS["top-3"])
    kept = stats.detached()
    assert not any(figure.requires_grad for figure in kept)
    for name, ours, expected in zip(LayerStats._fields, kept, whole, strict=True):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, msg=lambda text, name=name: f"{name}: {text}")
    # The original is unchanged and still has its graph.
    assert stats.chosen_PE.shape == stats.probability_PE.shape == (GROUPS, E)
    assert with_gradient(stats) == WITH_GRADIENT


def test_the_losses_of_detached_groups_can_still_be_read():
    """They are the losses of all groups as one group, not the mean that was trained on."""
    stats = stats_of(drawn(), GROUPS)
    as_one = balance_losses([stats_of(drawn())])
    torch.testing.assert_close(balance_losses([stats.detached()]), as_one)


def test_flat_and_back():
    shapes = ((5, 4), (3, 1), (7, 2))  # experts and groups of each layer
    layers = [stats_of(drawn(experts=experts), groups) for experts, groups in shapes]
    figures_X = flat(layers)
    assert len(figures_X) == sum(experts * (1 + 2 * groups) + 8 for experts, groups in shapes)
    for ours, expected in zip(unflat(figures_X, layers), layers, strict=True):
        for figure, expected_figure in zip(ours, expected, strict=True):
            assert torch.equal(figure, expected_figure)
    doubled = unflat(2 * figures_X, layers)  # like a sum over two equal processes
    for ours, expected in zip(doubled, layers, strict=True):
        for figure, expected_figure in zip(ours, expected.added(expected), strict=True):
            assert torch.equal(figure, expected_figure)


CHECKPOINTED: dict[str, dict[str, Any]] = {
    "top-3 with MTP": {"router_top_k": 3, "use_mtp": True, "aux_loss_scope": "sequence"},
    "switch with jitter": {
        "router_type": "switch",
        "capacity_factor": 0.8,
        "router_jitter": 0.3,
        "expert_dropout": 0.2,
    },
    "sigmoid": {"router_type": "sigmoid", "base_expansion": 1.0},
}


@pytest.mark.parametrize("variant", CHECKPOINTED)
def test_recomputation_counts_nothing_twice(variant):
    config = tiny(**CHECKPOINTED[variant])
    results = []
    for checkpointing in ("none", "full", "selective"):
        model = seeded(0, config)
        for layer in routed_layers(model)[: config.num_layers]:
            torch.nn.init.normal_(layer.router.weight_ED)
        lay_out(
            model,
            ParallelConfig(activation_checkpointing=checkpointing, compile="off"),
            torch.device("cpu"),
        )
        torch.manual_seed(1)  # recomputation must draw the same jitter and dropout again
        loss = model.loss(random_tokens(config))
        before = flat([layer.detached() for layer in loss.stats]).clone()
        loss.total.backward()
        assert torch.equal(flat([layer.detached() for layer in loss.stats]), before)
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append((before, [gradient for gradient in gradients if gradient is not None]))
        passes = [1] * config.num_layers + [3] * config.use_mtp
        assert [layer.tokens.item() for layer in loss.stats] == [count * B * S for count in passes]
    (expected_X, expected), *checkpointed = results
    for figures_X, gradients in checkpointed:
        assert torch.equal(figures_X, expected_X)
        for gradient, expected_gradient in zip(gradients, expected, strict=True):
            assert torch.equal(gradient, expected_gradient)
