"""The router module: its registry, bias, jitter, capacity, dtypes and gradients."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from moebius.config.routers import ROUTERS
from moebius.moe.balance import balance_losses
from moebius.moe.router import ROUTES, Router, sigmoid, softmax_topk, switch
from moebius.moe.statistics import layer_stats, who_chose
from tests.moe.routers import BIAS, LOGITS, VARIANTS, D, E, K, T, router_of

ONE_EXPERT_PER_TOKEN = [name for name in VARIANTS if "top-3" not in name]


def test_every_record_has_a_router():
    assert ROUTES.keys() == ROUTERS.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_router_compiles_without_a_break(variant):
    router = router_of(bias_E=BIAS, **VARIANTS[variant])
    x_TD = torch.randn(T, D)

    def run(x_TD: Tensor) -> list[Tensor]:
        routing = router(x_TD)
        return [*routing, *layer_stats(router, routing, groups=1)]

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(compiled(x_TD), run(x_TD), strict=True):
        assert torch.equal(ours, expected)


# the configuration


@pytest.mark.parametrize(
    ("changes", "by_function"),
    [
        ({"router_top_k": K, "gate_scale": 2.5}, lambda x: softmax_topk(x, K, True, 2.5, BIAS)),
        (
            {"router_top_k": K, "renormalize_gates": False},
            lambda x: softmax_topk(x, K, False, 1.0, BIAS),
        ),
        (
            {"router_top_k": K, "router_score": "sigmoid"},
            lambda x: softmax_topk(x, K, True, 1.0, BIAS, "sigmoid"),
        ),
        ({"router_top_k": 1, "gate_scale": 0.0}, lambda x: softmax_topk(x, 1, False, E, BIAS)),
        (
            {"router_type": "switch", "capacity_factor": 0.6},
            lambda x: switch(x, 5, 1.0, BIAS),  # 0.6 * 37 / 5 = 4.44
        ),
        (
            {"router_type": "switch", "gate_scale": 0.0, "capacity_factor": 9.0},
            lambda x: switch(x, T, E, BIAS),
        ),
        (
            {"router_type": "sigmoid", "router_threshold": 0.3},
            lambda x: sigmoid(x, 0.3, 1.0, BIAS),
        ),
    ],
)
def test_the_configuration_is_followed(changes, by_function):
    router = router_of(bias_E=BIAS, **changes)
    x_TD = torch.randn(T, D)
    expected = by_function(x_TD @ router.weight_ED.T / D**0.5)
    for ours, figure in zip(router(x_TD), expected, strict=True):
        torch.testing.assert_close(ours, figure)


@pytest.mark.parametrize(
    ("factor", "capacity"), [(0.0, 5), (2.0, 15), (0.1, 1)]
)  # 37 tokens, 5 experts
def test_the_capacity_of_training_and_of_evaluation(factor, capacity):
    router = router_of(router_type="switch", capacity_factor=0.6, eval_capacity_factor=factor)
    most_chosen = LOGITS.argmax(-1).bincount().max()
    for mode, expected in ((True, 5), (False, capacity)):
        routing = router.train(mode).route(LOGITS)
        taken_E = who_chose(routing.expert_TK, E).sum(dim=0)
        assert taken_E.max() == min(expected, most_chosen)
        for ours, figure in zip(routing, switch(LOGITS, expected), strict=True):
            assert torch.equal(ours, figure)
    assert router_of(router_type="switch").config.eval_capacity_factor == 0


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_gate_scale_0_lets_a_top1_gate_start_near_one(score):
    router = router_of(gate_scale=0.0, router_score=score)
    even = router.route(torch.zeros(T, E))
    torch.testing.assert_close(even.gate_TK, torch.ones(T, 1))
    top2 = router_of(gate_scale=0.0, router_top_k=2, router_score=score)
    torch.testing.assert_close(top2.route(torch.zeros(T, E)).gate_TK.sum(-1), torch.ones(T))


def factors_of(router: Router) -> Tensor:
    """Return the factors on the first E entries of every token's input."""
    router.weight_ED.data = torch.eye(E, D) * D**0.5
    return router(torch.ones(T, D)).logits_TE.detach()


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_is_jitter_in_training_alone(variant):
    router = router_of(router_jitter=0.1, **VARIANTS[variant])
    factor_TE = factors_of(router.train())
    assert 0.9 <= factor_TE.min() < 0.91 and 1.09 < factor_TE.max() <= 1.1
    assert len(factor_TE.unique()) > 0.99 * T * E  # every entry has its own factor
    assert not torch.equal(factors_of(router), factor_TE)
    torch.testing.assert_close(factors_of(router.eval()), torch.ones(T, E))
    assert router_of().config.router_jitter == 0
    without = router_of(**VARIANTS[variant]).train()
    torch.testing.assert_close(factors_of(without), torch.ones(T, E))


# the bias


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bias_that_changes_no_choice_changes_no_gate(variant):
    plain = router_of(**VARIANTS[variant])
    biased = router_of(bias_E=1e-6 * BIAS, **VARIANTS[variant])
    for ours, expected in zip(biased.route(LOGITS), plain.route(LOGITS), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("switch")])
def test_a_gate_is_that_of_its_expert_without_the_bias(variant):
    """The bias decides every choice, and the gates are the unbiased ones of the chosen experts."""
    router = router_of(bias_E=torch.arange(E) * 2.0 - 4, **VARIANTS[variant])
    routing = router.route(LOGITS)
    probs_TE = LOGITS.sigmoid() if "sigmoid" in variant else LOGITS.softmax(-1)
    assert torch.equal(routing.probs_TE, probs_TE)
    if variant == "sigmoid":  # the biases are -4, -2, 0, 2, 4
        assert (routing.expert_TK[:, :2] == E).all()
        assert (routing.expert_TK[:, 3:] == torch.tensor([3, 4])).all()
        assert torch.equal(routing.gate_TK[:, 3:], probs_TE[:, 3:])
        return
    k = router.config.router_top_k
    assert torch.equal(routing.expert_TK, torch.arange(E - 1, E - 1 - k, -1).expand(T, k))
    gate_TK = probs_TE.flip(-1)[:, :k]
    if k > 1 and router.config.renormalize_gates:
        gate_TK = gate_TK / gate_TK.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.gate_TK, gate_TK)


def test_a_switch_gate_is_that_of_its_expert_without_the_bias():
    routing = switch(LOGITS, T, bias_E=torch.arange(E) * 2.0)
    assert (routing.expert_TK == E - 1).all()
    assert torch.equal(routing.gate_TK[:, 0], LOGITS.softmax(-1)[:, E - 1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bias_is_no_parameter_and_gets_no_gradient(variant):
    router = router_of(bias_E=BIAS, **VARIANTS[variant])
    assert [name for name, _ in router.named_parameters()] == ["weight_ED"]
    assert not router.bias_E.requires_grad and "bias_E" in router.state_dict()
    assert not router_of(**VARIANTS[variant]).bias_E.any()
    router.bias_E.requires_grad_()  # even then no gradient reaches it
    routing = router(torch.randn(T, D))
    stats = layer_stats(router, routing, groups=1)
    loss = routing.gate_TK.sum() + routing.logits_TE.sum() + balance_losses([stats])[0]
    assert torch.autograd.grad(loss, router.bias_E, allow_unused=True) == (None,)


def plain_shift(bias: list[float], chosen: list[int], rate: float) -> list[float]:
    mean = sum(chosen) / len(chosen)
    moved = [
        b + rate * ((count < mean) - (count > mean)) for b, count in zip(bias, chosen, strict=True)
    ]
    return [b - sum(moved) / len(moved) for b in moved]


def test_shift_bias_by_hand():
    router = router_of()
    bias = [0.0] * E
    steps = [
        [7, 7, 7, 7, 7],
        [35, 0, 0, 0, 0],
        [9, 8, 7, 6, 5],
        [0, 0, 1, 0, 0],
        [8, 7, 7, 7, 7],
        [0] * E,
    ]
    for step, chosen in enumerate(steps * 20):
        before_E = router.bias_E.clone()
        dtype = torch.float32 if step % 2 else torch.long
        router.shift_bias(torch.tensor(chosen, dtype=dtype), 0.01)
        bias = plain_shift(bias, chosen, 0.01)
        assert router.bias_E.tolist() == pytest.approx(bias, abs=1e-6)
        assert router.bias_E.sum().item() == pytest.approx(0, abs=1e-6)
        if len(set(chosen)) == 1:
            torch.testing.assert_close(router.bias_E, before_E, rtol=0, atol=1e-7)
    assert router.bias_E[0] < router.bias_E[1:].min() < 0 < router.bias_E.max()
    assert not router.bias_E.requires_grad


def test_one_shift_by_hand():
    router = router_of()
    router.shift_bias(torch.tensor([12.0, 7, 7, 7, 2]), 0.5)
    assert router.bias_E.tolist() == [-0.5, 0, 0, 0, 0.5]  # the mean is 7
    # -0.5 and four times 0.5, the mean of which is 0.3
    router.shift_bias(torch.tensor([31.0, 1, 1, 1, 1]), 0.5)
    assert router.bias_E.tolist() == pytest.approx([-1.3, 0.2, 0.2, 0.2, 0.7])


@pytest.mark.parametrize("variant", VARIANTS)
def test_shifting_the_bias_evens_the_load(variant):
    router = router_of(**{**VARIANTS[variant], "capacity_factor": 9.0})
    logits = LOGITS + torch.tensor([2.0, 0, 0, -1, 0])

    def spread() -> Tensor:
        return who_chose(router.route(logits).expert_TK, E).sum(dim=0).float().std()

    before = spread()
    for _ in range(200):
        router.shift_bias(who_chose(router.chosen(router.route(logits)), E).sum(dim=0), 0.01)
    assert spread() < 0.4 * before


# numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_with_logits_that_are_not_finite_still_go_somewhere(variant, value):
    everywhere = slice(None)
    places = ((everywhere, everywhere), (3, everywhere), (everywhere, 2), (3, 2))
    for place, bias_E in itertools.product(places, (None, BIAS)):
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
    for values in (routing.logits_TE, routing.gate_TK, routing.probs_TE, *stats):
        assert values.dtype == torch.float32
    expected_stats = layer_stats(router, expected, groups=1)
    for ours, figure in zip((*routing, *stats), (*expected, *expected_stats), strict=True):
        assert torch.equal(ours, figure)
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


# gradients


@pytest.mark.parametrize("bias_E", [None, BIAS / 3], ids=["no bias", "bias"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_router_gets_a_gradient_through_its_gates_alone(variant, bias_E):
    router = router_of(bias_E=bias_E, **VARIANTS[variant])
    routing = router(torch.randn(T, D))
    routing.gate_TK.square().sum().backward()  # without any balance loss
    assert router.weight_ED.grad is not None
    assert (router.weight_ED.grad.norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("variant", ONE_EXPERT_PER_TOKEN)
def test_with_one_expert_per_token_the_router_learns_whatever_the_bias(variant, renormalize):
    """The bias chooses the same expert for every token, but its gate still has a gradient."""
    bias_E = torch.eye(E)[2] * 3 - 1
    router = router_of(bias_E=bias_E, **VARIANTS[variant], renormalize_gates=renormalize)
    routing = router(torch.randn(T, D))
    taken = routing.expert_TK[routing.expert_TK < E]
    assert len(taken) > 0 and (taken == 2).all()
    routing.gate_TK.sum().backward()
    assert router.weight_ED.grad is not None and router.weight_ED.grad[2].norm() > 1e-3
