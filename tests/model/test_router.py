"""Routers against transformers' and against plain Python, and the router's own gradient."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.model.loss import balance_losses
from moebius.model.router import (
    Router,
    Routing,
    expert_capacity,
    place_in_expert,
    sigmoid,
    softmax_topk,
    switch,
    who_chose,
)
from moebius.model.statistics import layer_stats

T, D, E, K = 37, 24, 5, 3
LOGITS = torch.randn(T, E, generator=torch.Generator().manual_seed(0)) * 2
TIES = (LOGITS / 2).round()
BIAS = torch.tensor([0.3, -0.2, 0.0, 0.15, -0.25])

VARIANTS: dict[str, dict[str, Any]] = {
    "top-1": {},
    "top-3": {"router_top_k": K},
    "top-3 as they are": {"router_top_k": K, "renormalize_gates": False},
    "top-1 of sigmoids": {"router_score": "sigmoid"},
    "top-3 of sigmoids": {"router_score": "sigmoid", "router_top_k": K},
    "switch": {"router_type": "switch", "capacity_factor": 1.0},
    "switch by gate": {"router_type": "switch", "capacity_factor": 1.0, "capacity_drop": "lowest_gate"},
    "sigmoid": {"router_type": "sigmoid"},
}
ONE_EXPERT_A_TOKEN = [name for name in VARIANTS if "top-3" not in name]


def router_of(num_experts: int = E, bias_E: Tensor | None = None, **changes: Any) -> Router:
    """Of random weights that decide: logits spread like LOGITS."""
    settings = {"dim": D, "num_heads": 2, "num_kv_heads": 1, "num_experts": num_experts, "base_expansion": 1.0, **changes}
    router = Router(ModelConfig(**settings), num_experts)
    torch.nn.init.normal_(router.weight_ED, std=2.0)
    if bias_E is not None:
        router.bias_E.copy_(bias_E)
    return router


def losses_of(routing: Routing, **changes: Any) -> tuple[Tensor, Tensor]:
    """The balance and the z-loss of one layer."""
    stats = layer_stats(router_of(routing.logits_TE.shape[1], **changes), routing, groups=1)
    return balance_losses([stats])[0], stats.squared_log_partition / stats.tokens


def plain_switch(probs: list[list[float]], capacity: int, bias: list[float], drop: str) -> tuple[list[int], list[float]]:
    """Token after token, as the papers say it."""
    experts = [max(range(len(row)), key=lambda e, row=row: row[e] + bias[e]) for row in probs]
    gates = [row[expert] for row, expert in zip(probs, experts, strict=True)]
    order = range(len(probs)) if drop == "last" else sorted(range(len(probs)), key=lambda t: -gates[t])
    taken = [0] * len(bias)
    for token in order:
        expert = experts[token]
        if taken[expert] == capacity:
            experts[token], gates[token] = len(bias), 0.0
        else:
            taken[expert] += 1
    return experts, gates


def plain_topk(row: list[float], k: int, bias: list[float], renormalize: bool, scale: float) -> dict[int, float]:
    """gate by expert of one token, from its probabilities."""
    best = sorted(range(len(row)), key=lambda e: row[e] + bias[e], reverse=True)[:k]
    total = sum(row[e] for e in best) if renormalize and k > 1 else 1.0
    return {e: scale * row[e] / total for e in best}


@pytest.mark.parametrize("k", range(1, E + 1))
def test_softmax_topk_is_mixtrals(k):
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    router = mixtral.MixtralTopKRouter(SimpleNamespace(num_experts_per_tok=k, num_local_experts=E, hidden_size=E))
    router.weight.data = torch.eye(E)  # hands the logits on
    _, gates, experts = router(LOGITS)
    ours = softmax_topk(LOGITS, k, renormalize=True)
    assert torch.equal(ours.expert_TK, experts)
    if k == 1:  # theirs is renormalised to the constant 1, ours is what they renormalise
        assert torch.equal(gates, torch.ones(T, 1))
        gates = LOGITS.softmax(-1).max(-1, keepdim=True).values
    torch.testing.assert_close(ours.gate_TK, gates)
    theirs = mixtral.load_balancing_loss_func((LOGITS,), E, k)
    torch.testing.assert_close(losses_of(ours, router_top_k=k)[0], theirs)


@pytest.mark.parametrize("capacity", [1, 5, T])
def test_switch_is_switch_transformers(capacity):
    """On one sequence: theirs counts each sequence's capacity by itself, ours the batch's."""
    hugging = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    settings = SimpleNamespace(
        num_experts=E, expert_capacity=capacity, hidden_size=E, router_bias=False, router_jitter_noise=0.0,
        router_ignore_padding_tokens=False, router_dtype="float32",
    )  # fmt: skip
    router = hugging.SwitchTransformersTop1Router(settings)
    router.classifier.weight.data = torch.eye(E)
    outputs = router(LOGITS[None])  # their order differs between versions
    mask = next(output for output in outputs if not output.is_floating_point())
    probability = next(output for output in outputs if output.is_floating_point() and output.shape[-1] == 1)
    if mask.dim() == 4:  # up to 5.17 their running count goes along an axis of one
        mask = mask.squeeze(2)
        if capacity < T:
            pytest.skip("this version of transformers never drops a token")
    ours = switch(LOGITS, capacity)
    kept = mask[0].any(-1)
    assert kept.sum() == LOGITS.argmax(-1).bincount(minlength=E).clamp(max=capacity).sum()
    assert torch.equal(ours.expert_TK[:, 0], torch.where(kept, mask[0].argmax(-1), E))
    torch.testing.assert_close(ours.gate_TK[:, 0], torch.where(kept, probability[0, :, 0], 0.0))
    balance, z = losses_of(ours, router_type="switch")
    torch.testing.assert_close(balance, hugging.load_balancing_loss_func(LOGITS[None].softmax(-1), LOGITS[None].argmax(-1)))
    torch.testing.assert_close(z, hugging.router_z_loss_func(LOGITS[None]))


def deepseeks(k: int, scale: float, renormalize: bool, bias_E: Tensor) -> Any:
    """Its router without groups, handing the logits on."""
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    settings = SimpleNamespace(
        num_experts_per_tok=k, num_local_experts=E, n_routed_experts=E, hidden_size=E, routed_scaling_factor=scale, n_group=1,
        topk_group=1, norm_topk_prob=renormalize,
    )  # fmt: skip
    router = deepseek.DeepseekV3TopkRouter(settings)
    router.weight.data = torch.eye(E)
    router.e_score_correction_bias.copy_(bias_E)
    return router


@pytest.mark.parametrize("k", range(1, E + 1))
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("bias_E", [torch.zeros(E), BIAS, 9 * BIAS], ids=["none", "small", "large"])
def test_topk_of_sigmoids_is_deepseeks(k, renormalize, bias_E):
    _, gates, experts = deepseeks(k, 2.5, renormalize, bias_E)(LOGITS)
    router = router_of(bias_E=bias_E, router_score="sigmoid", router_top_k=k, renormalize_gates=renormalize, gate_scale=2.5)
    ours = router.route(LOGITS)
    expected_TE, gate_TE = (torch.zeros(T, E).scatter(1, *pair) for pair in ((experts, gates), (ours.expert_TK, ours.gate_TK)))
    assert torch.equal(ours.expert_TK.sort(-1).values, experts.sort(-1).values)  # theirs come in no order
    if k == 1 and renormalize:  # theirs is renormalised to the constant, ours is what they renormalise
        torch.testing.assert_close(gates, torch.full((T, 1), 2.5))
        expected_TE = torch.zeros(T, E).scatter(1, experts, 2.5 * LOGITS.sigmoid().gather(1, experts))
    torch.testing.assert_close(gate_TE, expected_TE)
    overturned = (experts.sort(-1).values != LOGITS.topk(k).indices.sort(-1).values).any(-1)
    assert overturned.any() == (bias_E.any().item() and k < E)


@pytest.mark.parametrize("k", [1, 2, E])
def test_sigmoid_gates_are_deepseeks(k):
    """Its best k of a token, without groups and bias, are ours above a threshold that only the token's best k pass."""
    _, gates, experts = deepseeks(k, 2.5, False, torch.zeros(E))(LOGITS)
    expected_TE = torch.zeros(T, E).scatter(1, experts, gates)
    for token in range(T):
        best = sorted(LOGITS[token].sigmoid().tolist(), reverse=True)
        ours = sigmoid(LOGITS[token : token + 1], threshold=(best[k - 1] + [*best, 0.0][k]) / 2, scale=2.5)
        assert sorted(ours.expert_TK[0].tolist()) == sorted([*experts[token].tolist(), *[E] * (E - k)])
        torch.testing.assert_close(ours.gate_TK[0], expected_TE[token])


@pytest.mark.parametrize("experts", [1, 2, E])
@pytest.mark.parametrize("tokens", [1, T])
@pytest.mark.parametrize("drop", ["last", "lowest_gate"])
def test_switch_by_hand(experts, tokens, drop):
    for factor in (0.1, 1.0, 1.25, 100.0):
        capacity = expert_capacity(tokens, experts, factor)
        assert capacity >= factor * tokens / experts > capacity - 1
        for bias_E in (torch.zeros(experts), BIAS[:experts], torch.arange(experts) * 2.0):  # the last: all to one expert
            assert_switch_by_hand(LOGITS[:tokens, :experts], capacity, bias_E, drop)
            assert_switch_by_hand(TIES[:tokens, :experts], capacity, bias_E, drop)


@pytest.mark.parametrize(("tokens", "experts", "tenths"), [(100, 10, 11), (200, 10, 11), (1, 1, 1), (37, 5, 6), (37, 5, 0)])
def test_the_capacity_is_the_rounded_up_share(tokens, experts, tenths):
    """In whole numbers: 1.1 * 100 / 10 is a little above 11 in floats, and 12 would be more than was asked for."""
    assert expert_capacity(tokens, experts, tenths / 10) == -(-tenths * tokens // (10 * experts))


@pytest.mark.parametrize("logits", [torch.zeros(T, E), torch.eye(E)[3].expand(T, E), torch.eye(E)[[1, 4] * 9]])
@pytest.mark.parametrize("drop", ["last", "lowest_gate"])
def test_switch_by_hand_with_experts_that_nobody_chooses(logits, drop):
    for capacity, bias_E in itertools.product((0, 1, 7, T, T + 9), (torch.zeros(E), BIAS)):
        assert_switch_by_hand(logits, capacity, bias_E, drop)


def assert_switch_by_hand(logits: Tensor, capacity: int, bias_E: Tensor, drop: Any) -> None:
    chosen, gates = plain_switch(logits.softmax(-1).tolist(), capacity, bias_E.tolist(), drop)
    ours = switch(logits, capacity, 2.5, bias_E, drop)
    assert ours.expert_TK[:, 0].tolist() == chosen
    assert ours.gate_TK[:, 0].tolist() == pytest.approx([2.5 * gate for gate in gates])
    assert who_chose(ours.expert_TK, logits.shape[1]).sum(dim=0).max() <= capacity


def test_whom_a_full_expert_drops():
    logits = torch.tensor([[1.0, 0], [3, 0], [2, 0], [0, 1], [3, 0]])
    assert switch(logits, 2).expert_TK[:, 0].tolist() == [0, 0, 2, 1, 2]
    assert switch(logits, 2, drop="lowest_gate").expert_TK[:, 0].tolist() == [2, 0, 2, 1, 0]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "k"), [(T, E, 1), (T, E, K), (T, E, E), (1, E, 2), (T, 1, 1), (1, 1, 1)])
def test_topk_by_hand(score, renormalize, tokens, experts, k):
    biases = (torch.zeros(experts), BIAS[:experts], torch.arange(experts) * 2.0)
    for logits_TE, bias_E in itertools.product((LOGITS[:tokens, :experts], TIES[:tokens, :experts]), biases):
        probs_TE = logits_TE.softmax(-1) if score == "softmax" else logits_TE.sigmoid()
        ours = softmax_topk(logits_TE, k, renormalize, 2.5, bias_E, score)
        assert ours.expert_TK.shape == ours.gate_TK.shape == (tokens, k)
        for token, row in enumerate(probs_TE.tolist()):
            gates = dict(zip(ours.expert_TK[token].tolist(), ours.gate_TK[token].tolist(), strict=True))
            expected = plain_topk(row, k, bias_E.tolist(), renormalize, 2.5)
            biased = [row[e] + bias_E[e].item() for e in range(experts)]
            assert len(gates) == k  # each expert once
            # of experts that tie any may be taken
            assert sorted(biased[e] for e in gates) == pytest.approx(sorted(biased[e] for e in expected))
            assert sorted(gates.values()) == pytest.approx(sorted(expected.values()), rel=1e-5)
            if len(set(biased)) == experts:
                assert gates == pytest.approx(expected, rel=1e-5)


def test_sigmoid_by_hand():
    routing = sigmoid(torch.tensor([[0.0, 3.0, -9.0], [-9.0, -9.0, -9.0]]), threshold=0.4)
    assert routing.expert_TK.tolist() == [[0, 1, 3], [3, 3, 3]]  # 3 is no expert
    torch.testing.assert_close(routing.gate_TK, torch.tensor([[0.5, 0.952574, 0], [0, 0, 0]]))
    assert who_chose(routing.expert_TK, 3).sum(dim=0).tolist() == [1, 1, 0]


@pytest.mark.parametrize(("tokens", "experts"), [(T, E), (1, E), (T, 1), (1, 1)])
def test_sigmoid_with_a_bias_by_hand(tokens, experts):
    everything, nothing = torch.full((experts,), 2.0), torch.full((experts,), -2.0)
    for bias_E in (torch.zeros(experts), BIAS[:experts], everything, nothing):
        for logits_TE in (LOGITS[:tokens, :experts], TIES[:tokens, :experts]):  # a logit of 0 is at the threshold, not above
            ours = sigmoid(logits_TE, 0.5, 2.5, bias_E)
            for token, row in enumerate(logits_TE.sigmoid().tolist()):
                active = [row[e] + bias_E[e].item() > 0.5 for e in range(experts)]
                assert ours.expert_TK[token].tolist() == [e if active[e] else experts for e in range(experts)]
                assert ours.gate_TK[token].tolist() == pytest.approx([2.5 * p * a for p, a in zip(row, active, strict=True)])


def test_topk_takes_each_expert_once():
    routing = softmax_topk(LOGITS, K, renormalize=False)
    for token, chosen in enumerate(routing.expert_TK.tolist()):
        assert sorted(chosen) == sorted(LOGITS[token].argsort(descending=True)[:K].tolist())
    torch.testing.assert_close(routing.gate_TK, LOGITS.softmax(-1).gather(1, routing.expert_TK))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bias_that_changes_no_choice_changes_no_gate(variant):
    plain, biased = router_of(**VARIANTS[variant]), router_of(bias_E=1e-6 * BIAS, **VARIANTS[variant])
    for ours, expected in zip(biased.route(LOGITS), plain.route(LOGITS), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("switch")])
def test_a_gate_is_that_of_its_expert_without_the_bias(variant):
    """Above, the same choice; here another one: the same gates as if the choice had been made by hand."""
    router = router_of(bias_E=torch.arange(E) * 2.0 - 4, **VARIANTS[variant])
    routing = router.route(LOGITS)
    is_sigmoid = "sigmoid" in variant
    probs_TE = LOGITS.sigmoid() if is_sigmoid else LOGITS.softmax(-1)
    assert torch.equal(routing.probs_TE, probs_TE)
    if variant == "sigmoid":  # biases -4, -2, 0, 2, 4
        assert (routing.expert_TK[:, :2] == E).all() and (routing.expert_TK[:, 3:] == torch.tensor([3, 4])).all()
        assert torch.equal(routing.gate_TK[:, 3:], probs_TE[:, 3:])
        return
    k = router.config.router_top_k
    assert torch.equal(routing.expert_TK, torch.arange(E - 1, E - 1 - k, -1).expand(T, k))  # overturns every choice
    gate_TK = probs_TE.flip(-1)[:, :k]
    is_renormalized = k > 1 and router.config.renormalize_gates
    torch.testing.assert_close(routing.gate_TK, gate_TK / gate_TK.sum(-1, keepdim=True) if is_renormalized else gate_TK)


@pytest.mark.parametrize("drop", ["last", "lowest_gate"])
def test_a_switch_gate_is_that_of_its_expert_without_the_bias(drop):
    routing = switch(LOGITS, T, bias_E=torch.arange(E) * 2.0, drop=drop)
    assert (routing.expert_TK == E - 1).all()
    assert torch.equal(routing.gate_TK[:, 0], LOGITS.softmax(-1)[:, E - 1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bias_is_no_parameter_and_gets_no_gradient(variant):
    router = router_of(bias_E=BIAS, **VARIANTS[variant])
    assert [name for name, _ in router.named_parameters()] == ["weight_ED"]
    assert not router.bias_E.requires_grad and "bias_E" in router.state_dict()
    assert not router_of(**VARIANTS[variant]).bias_E.any()
    router.bias_E.requires_grad_()  # nor does anything reach it if asked for
    routing = router(torch.randn(T, D))
    stats = layer_stats(router, routing, groups=1)
    loss = routing.gate_TK.sum() + routing.logits_TE.sum() + balance_losses([stats])[0]
    assert torch.autograd.grad(loss, router.bias_E, allow_unused=True) == (None,)


def plain_shift(bias: list[float], chosen: list[int], rate: float) -> list[float]:
    mean = sum(chosen) / len(chosen)
    moved = [b + rate * ((count < mean) - (count > mean)) for b, count in zip(bias, chosen, strict=True)]
    return [b - sum(moved) / len(moved) for b in moved]


def test_shift_bias_by_hand():
    router = router_of()
    bias = [0.0] * E
    steps = [[7, 7, 7, 7, 7], [35, 0, 0, 0, 0], [9, 8, 7, 6, 5], [0, 0, 1, 0, 0], [8, 7, 7, 7, 7], [0] * E]
    for step, chosen in enumerate(steps * 20):
        before_E = router.bias_E.clone()
        router.shift_bias(torch.tensor(chosen, dtype=torch.float32 if step % 2 else torch.long), 0.01)
        bias = plain_shift(bias, chosen, 0.01)
        assert router.bias_E.tolist() == pytest.approx(bias, abs=1e-6)
        assert router.bias_E.sum().item() == pytest.approx(0, abs=1e-6)
        if len(set(chosen)) == 1:
            torch.testing.assert_close(router.bias_E, before_E, rtol=0, atol=1e-7)
    assert router.bias_E[0] < router.bias_E[1:].min() < 0 < router.bias_E.max() and not router.bias_E.requires_grad


def test_one_shift_by_hand():
    router = router_of()
    router.shift_bias(torch.tensor([12.0, 7, 7, 7, 2]), 0.5)
    assert router.bias_E.tolist() == [-0.5, 0, 0, 0, 0.5]  # at the mean: nothing
    router.shift_bias(torch.tensor([31.0, 1, 1, 1, 1]), 0.5)  # -0.5 and four times 0.5, of which the mean is 0.3
    assert router.bias_E.tolist() == pytest.approx([-1.3, 0.2, 0.2, 0.2, 0.7])


@pytest.mark.parametrize("variant", VARIANTS)
def test_shifting_the_bias_evens_the_load(variant):
    router = router_of(**{**VARIANTS[variant], "capacity_factor": 9.0})
    logits = LOGITS + torch.tensor([2.0, 0, 0, -1, 0])
    before = who_chose(router.route(logits).expert_TK, E).sum(dim=0).float().std()
    for _ in range(200):
        router.shift_bias(who_chose(router.chosen(router.route(logits)), E).sum(dim=0), 0.01)
    assert who_chose(router.route(logits).expert_TK, E).sum(dim=0).float().std() < 0.4 * before


def factors_of(router: Router) -> Tensor:
    """What each of the first E entries of every token's input was multiplied by."""
    router.weight_ED.data = torch.eye(E, D) * D**0.5
    return router(torch.ones(T, D)).logits_TE.detach()


@pytest.mark.parametrize("variant", VARIANTS)
def test_jitter_is_of_training_alone(variant):
    router = router_of(router_jitter=0.1, **VARIANTS[variant])
    factor_TE = factors_of(router.train())
    assert 0.9 <= factor_TE.min() < 0.91 and 1.09 < factor_TE.max() <= 1.1
    assert len(factor_TE.unique()) > 0.99 * T * E  # each entry its own
    assert not torch.equal(factors_of(router), factor_TE)
    torch.testing.assert_close(factors_of(router.eval()), torch.ones(T, E))
    assert router_of().config.router_jitter == 0
    torch.testing.assert_close(factors_of(router_of(**VARIANTS[variant]).train()), torch.ones(T, E))


@pytest.mark.parametrize("drop", ["last", "lowest_gate"])
@pytest.mark.parametrize(("factor", "capacity"), [(0.0, 5), (2.0, 15), (0.1, 1)])  # 37 tokens, 5 experts
def test_the_capacity_of_training_and_of_evaluation(factor, capacity, drop):
    router = router_of(router_type="switch", capacity_factor=0.6, eval_capacity_factor=factor, capacity_drop=drop)
    for mode, expected in ((True, 5), (False, capacity)):
        routing = router.train(mode).route(LOGITS)
        assert who_chose(routing.expert_TK, E).sum(dim=0).max() == min(expected, LOGITS.argmax(-1).bincount().max())
        for ours, theirs in zip(routing, switch(LOGITS, expected, drop=drop), strict=True):
            assert torch.equal(ours, theirs)
    assert router_of(router_type="switch").config.eval_capacity_factor == 0


@pytest.mark.parametrize("experts", [[0], [E - 1], [2] * 9, [4, 1, 4, 4, 1], LOGITS.argmax(-1).tolist(), list(range(E))])
def test_place_in_expert_by_hand(experts):
    seen = [0] * E
    places = []
    for expert in experts:
        places.append(seen[expert])
        seen[expert] += 1
    assert place_in_expert(torch.tensor(experts), E).tolist() == places


def test_place_in_the_only_expert():
    assert place_in_expert(torch.zeros(T, dtype=torch.long), 1).tolist() == list(range(T))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_that_are_not_finite_still_go_somewhere(variant, value):
    everywhere = slice(None)
    for place, bias_E in itertools.product(((everywhere, everywhere), (3, everywhere), (everywhere, 2), (3, 2)), (None, BIAS)):
        logits = LOGITS.clone()
        logits[place] = value
        router = router_of(bias_E=bias_E, **VARIANTS[variant])
        routing = router.route(logits)
        for expert_TK in (routing.expert_TK, router.chosen(routing)):
            assert expert_TK.dtype == torch.long and len(expert_TK) == T
            assert ((expert_TK >= 0) & (expert_TK <= E)).all()
        counts = routing.expert_TK.flatten().bincount(minlength=E + 1)
        stats = layer_stats(router, routing, groups=1)
        assert stats.not_finite == (~logits.isfinite()).sum() > 0
        assert torch.equal(stats.tokens_per_expert_E.long(), counts[:E])
        if variant != "sigmoid":
            assert stats.chosen_PE.sum() == T * router.config.router_top_k


@pytest.mark.parametrize(("balanced", "expected"), [(True, 1.0), (False, float(E))])
def test_balance_loss_is_1_when_even_and_e_at_collapse(balanced, expected):
    logits = torch.eye(E).repeat(4, 1) * 100 if balanced else torch.eye(E)[:1].repeat(20, 1) * 100
    assert losses_of(softmax_topk(logits, 1, renormalize=False))[0].item() == pytest.approx(expected)
    for drop in ("last", "lowest_gate"):
        balance, _ = losses_of(switch(logits, capacity=2, drop=drop), router_type="switch")
        assert balance.item() == pytest.approx(expected)


@pytest.mark.parametrize("renormalize", [True, False])
def test_a_top1_gate_is_its_probability_whatever_the_flag(renormalize):
    routing = softmax_topk(LOGITS, 1, renormalize)
    torch.testing.assert_close(routing.gate_TK[:, 0], LOGITS.softmax(-1).max(-1).values)
    routing = softmax_topk(LOGITS, 1, renormalize, score="sigmoid")
    torch.testing.assert_close(routing.gate_TK[:, 0], LOGITS.sigmoid().max(-1).values)


@pytest.mark.parametrize("bias_E", [None, BIAS / 3], ids=["no bias", "bias"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_router_gets_a_gradient_through_its_gates_alone(variant, bias_E):
    router = router_of(bias_E=bias_E, **VARIANTS[variant])
    routing = router(torch.randn(T, D))
    routing.gate_TK.square().sum().backward()  # nothing of the balance loss
    assert router.weight_ED.grad is not None
    assert (router.weight_ED.grad.norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("variant", ONE_EXPERT_A_TOKEN)
def test_at_one_expert_a_token_the_router_learns_whatever_the_bias(variant, renormalize):
    """The bias alone chooses, everyone the same expert, and still that expert's gate has a slope."""
    bias_E = torch.eye(E)[2] * 3 - 1
    router = router_of(bias_E=bias_E, **VARIANTS[variant], renormalize_gates=renormalize)
    routing = router(torch.randn(T, D))
    taken_TK = routing.expert_TK[routing.expert_TK < E]
    assert len(taken_TK) > 0 and (taken_TK == 2).all()
    routing.gate_TK.sum().backward()
    assert router.weight_ED.grad is not None and router.weight_ED.grad[2].norm() > 1e-3


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_gate_scale_0_lets_a_top1_gate_start_near_one(score):
    router = router_of(gate_scale=0.0, router_score=score)
    even = router.route(torch.zeros(T, E))
    torch.testing.assert_close(even.gate_TK, torch.ones(T, 1))
    top2 = router_of(gate_scale=0.0, router_top_k=2, router_score=score)
    torch.testing.assert_close(top2.route(torch.zeros(T, E)).gate_TK.sum(-1), torch.ones(T))


@pytest.mark.parametrize("jitter", [0.0, 0.1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_arithmetic_is_float32_under_autocast(variant, jitter):
    router = router_of(bias_E=BIAS, router_jitter=jitter, **VARIANTS[variant])
    x_TD = torch.randn(T, D)
    torch.manual_seed(1)
    expected = router(x_TD)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x_TD)
        stats = layer_stats(router, routing, groups=1)
    assert routing.logits_TE.dtype == routing.gate_TK.dtype == routing.probs_TE.dtype == torch.float32
    assert {figure.dtype for figure in stats} == {torch.float32}
    for ours, theirs in zip(routing, expected, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(stats, layer_stats(router, expected, groups=1), strict=True):
        assert torch.equal(ours, theirs)
    if not jitter:
        torch.testing.assert_close(routing.logits_TE, x_TD @ router.weight_ED.T / D**0.5)


@pytest.mark.parametrize("jitter", [0.0, 1e-7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_narrow_input_is_widened_and_a_wide_one_kept(dtype, jitter):
    router = router_of(router_jitter=jitter, bias_E=BIAS)
    x_TD = torch.randn(T, D).to(dtype)
    expected = x_TD.double() @ router.weight_ED.double().T / D**0.5
    logits_TE = router(x_TD).logits_TE
    assert logits_TE.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(logits_TE.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "by_function"),
    [
        ({"router_top_k": K, "gate_scale": 2.5}, lambda x: softmax_topk(x, K, True, 2.5, BIAS)),
        ({"router_top_k": K, "renormalize_gates": False}, lambda x: softmax_topk(x, K, False, 1.0, BIAS)),
        ({"router_top_k": K, "router_score": "sigmoid"}, lambda x: softmax_topk(x, K, True, 1.0, BIAS, "sigmoid")),
        ({"router_top_k": 1, "gate_scale": 0.0}, lambda x: softmax_topk(x, 1, False, E, BIAS)),
        ({"router_type": "switch", "capacity_factor": 0.6}, lambda x: switch(x, 5, 1.0, BIAS)),  # 0.6 * 37 / 5 = 4.44
        ({"router_type": "switch", "gate_scale": 0.0, "capacity_factor": 9.0}, lambda x: switch(x, T, E, BIAS)),
        (
            {"router_type": "switch", "capacity_factor": 0.6, "capacity_drop": "lowest_gate"},
            lambda x: switch(x, 5, 1.0, BIAS, "lowest_gate"),
        ),
        ({"router_type": "sigmoid", "router_threshold": 0.3}, lambda x: sigmoid(x, 0.3, 1.0, BIAS)),
    ],
)
def test_the_configuration_is_heeded(changes, by_function):
    router = router_of(bias_E=BIAS, **changes)
    x_TD = torch.randn(T, D)
    for ours, expected in zip(router(x_TD), by_function(x_TD @ router.weight_ED.T / D**0.5), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("size", [-200.0, 200.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_stay_finite_at_extreme_logits(variant, size):
    logits = (LOGITS + size).requires_grad_()  # in float32, sigmoid(-104) and below are 0
    router = router_of(**VARIANTS[variant])
    routing = router.route(logits)
    stats = layer_stats(router, routing, groups=1)
    loss = balance_losses([stats])[0] + stats.squared_log_partition / T + routing.gate_TK.sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all()
    assert all(figure.isfinite().all() for figure in stats)


def test_no_expert_is_an_id_of_its_own():
    expert_TK = torch.tensor([[0, E], [E, E], [2, 0], [4, E]])
    assert [row.nonzero().flatten().tolist() for row in who_chose(expert_TK, E)] == [[0], [], [0, 2], [4]]
    dropped = switch(torch.eye(E)[[2, 2, 1]], capacity=1)
    assert dropped.expert_TK.tolist() == [[2], [E], [1]]
    assert dropped.gate_TK[1] == 0
