"""Routers against transformers' and against plain Python, and the router's own gradient."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.model.router import Router, balance_loss, expert_capacity, sigmoid, softmax_topk, switch, tokens_per_expert, z_loss

T, D, E, K = 37, 24, 5, 3
LOGITS = torch.randn(T, E, generator=torch.Generator().manual_seed(0)) * 2


def plain_switch(logits: Tensor, capacity: int) -> tuple[list[int], list[float]]:
    """Token after token, as the paper says it."""
    taken = [0] * logits.shape[1]
    experts, gates = [], []
    for row in logits.softmax(-1).tolist():
        best = row.index(max(row))
        kept = taken[best] < capacity
        taken[best] += kept
        experts.append(best if kept else len(row))
        gates.append(row[best] if kept else 0.0)
    return experts, gates


@pytest.mark.parametrize("k", [2, K, E])
def test_softmax_topk_is_mixtrals(k):
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    router = mixtral.MixtralTopKRouter(SimpleNamespace(num_experts_per_tok=k, num_local_experts=E, hidden_size=E))
    router.weight.data = torch.eye(E)  # hands the logits on
    _, gates, experts = router(LOGITS)
    ours = softmax_topk(LOGITS, k, renormalize=True)
    assert torch.equal(ours.expert_TK, experts)
    torch.testing.assert_close(ours.gate_TK, gates)
    theirs = mixtral.load_balancing_loss_func((LOGITS,), E, k)
    torch.testing.assert_close(balance_loss(ours), theirs)


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
    theirs = hugging.load_balancing_loss_func(LOGITS[None].softmax(-1), LOGITS[None].argmax(-1))
    torch.testing.assert_close(balance_loss(ours, before_capacity=True), theirs)
    torch.testing.assert_close(z_loss(LOGITS), hugging.router_z_loss_func(LOGITS[None]))


@pytest.mark.parametrize("k", [1, 2, E])
def test_sigmoid_gates_are_deepseeks(k):
    """Its best k of a token, without groups and bias, are ours above a threshold that only the token's best k pass."""
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    settings = SimpleNamespace(
        num_experts_per_tok=k, num_local_experts=E, n_routed_experts=E, hidden_size=E, routed_scaling_factor=2.5, n_group=1,
        topk_group=1, norm_topk_prob=False,
    )  # fmt: skip
    router = deepseek.DeepseekV3TopkRouter(settings)
    router.weight.data = torch.eye(E)
    _, gates, experts = router(LOGITS)
    expected_TE = torch.zeros(T, E).scatter(1, experts, gates)
    for token in range(T):
        best = sorted(LOGITS[token].sigmoid().tolist(), reverse=True)
        ours = sigmoid(LOGITS[token : token + 1], threshold=(best[k - 1] + [*best, 0.0][k]) / 2, scale=2.5)
        assert sorted(ours.expert_TK[0].tolist()) == sorted([*experts[token].tolist(), *[E] * (E - k)])
        torch.testing.assert_close(ours.gate_TK[0], expected_TE[token])


@pytest.mark.parametrize("experts", [1, 2, E])
@pytest.mark.parametrize("tokens", [1, T])
@pytest.mark.parametrize("factor", [0.1, 1.0, 1.25, 100.0])
def test_switch_by_hand(experts, tokens, factor):
    assert_switch_by_hand(LOGITS[:tokens, :experts].round(), factor)  # rounded: with ties


@pytest.mark.parametrize("logits", [torch.zeros(T, E), torch.eye(E)[3].expand(T, E), torch.eye(E)[[1, 4] * 9]])
def test_switch_by_hand_with_experts_that_nobody_chooses(logits):
    assert_switch_by_hand(logits, 1.25)


def assert_switch_by_hand(logits: Tensor, factor: float) -> None:
    tokens, experts = logits.shape
    capacity = expert_capacity(tokens, experts, factor)
    assert capacity >= factor * tokens / experts > capacity - 1
    chosen, gates = plain_switch(logits, capacity)
    ours = switch(logits, capacity)
    assert ours.expert_TK[:, 0].tolist() == chosen
    assert ours.gate_TK[:, 0].tolist() == pytest.approx(gates)
    assert tokens_per_expert(ours.expert_TK, experts).max() <= capacity


def test_sigmoid_by_hand():
    routing = sigmoid(torch.tensor([[0.0, 3.0, -9.0], [-9.0, -9.0, -9.0]]), threshold=0.4)
    assert routing.expert_TK.tolist() == [[0, 1, 3], [3, 3, 3]]  # 3 is no expert
    torch.testing.assert_close(routing.gate_TK, torch.tensor([[0.5, 0.952574, 0], [0, 0, 0]]))
    assert tokens_per_expert(routing.expert_TK, 3).tolist() == [1, 1, 0]


def test_topk_takes_each_expert_once():
    routing = softmax_topk(LOGITS, K, renormalize=False)
    for token, chosen in enumerate(routing.expert_TK.tolist()):
        assert sorted(chosen) == sorted(LOGITS[token].argsort(descending=True)[:K].tolist())
    torch.testing.assert_close(routing.gate_TK, LOGITS.softmax(-1).gather(1, routing.expert_TK))


@pytest.mark.parametrize(("balanced", "expected"), [(True, 1.0), (False, float(E))])
def test_balance_loss_is_1_when_even_and_e_at_collapse(balanced, expected):
    logits = torch.eye(E).repeat(4, 1) * 100 if balanced else torch.eye(E)[:1].repeat(20, 1) * 100
    assert balance_loss(softmax_topk(logits, 1, renormalize=False)).item() == pytest.approx(expected)
    assert balance_loss(switch(logits, capacity=2), before_capacity=True).item() == pytest.approx(expected)


@pytest.mark.parametrize("renormalize", [True, False])
def test_a_top1_gate_is_its_probability_whatever_the_flag(renormalize):
    routing = softmax_topk(LOGITS, 1, renormalize)
    torch.testing.assert_close(routing.gate_TK[:, 0], LOGITS.softmax(-1).max(-1).values)


@pytest.mark.parametrize("router_type", ["softmax_topk", "switch", "sigmoid"])
def test_the_router_gets_a_gradient_through_its_gates_alone(router_type):
    config = ModelConfig(dim=D, num_heads=2, num_kv_heads=1, num_experts=E, router_type=router_type, base_expansion=1)
    router = Router(config, E)
    torch.nn.init.normal_(router.weight_ED)
    routing = router(torch.randn(T, D))
    routing.gate_TK.square().sum().backward()  # nothing of the balance loss
    assert router.weight_ED.grad is not None
    assert (router.weight_ED.grad.norm(dim=1) > 1e-3).all()


def test_gate_scale_0_lets_a_top1_gate_start_near_one():
    config = ModelConfig(dim=D, num_heads=2, num_kv_heads=1, num_experts=E, gate_scale=0.0)
    router = Router(config, E)
    even = router.route(torch.zeros(T, E))
    torch.testing.assert_close(even.gate_TK, torch.ones(T, 1))
    top2 = Router(ModelConfig(dim=D, num_heads=2, num_kv_heads=1, num_experts=E, gate_scale=0.0, router_top_k=2), E)
    torch.testing.assert_close(top2.route(torch.zeros(T, E)).gate_TK.sum(-1), torch.ones(T))


def test_arithmetic_is_float32_under_autocast():
    config = ModelConfig(dim=D, num_heads=2, num_kv_heads=1, num_experts=E)
    router = Router(config, E)
    torch.nn.init.normal_(router.weight_ED)
    x_TD = torch.randn(T, D)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x_TD)
    assert routing.logits_TE.dtype == routing.gate_TK.dtype == routing.probs_TE.dtype == torch.float32
    torch.testing.assert_close(routing.logits_TE, x_TD @ router.weight_ED.T / D**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_narrow_input_is_widened_and_a_wide_one_kept(dtype):
    router = Router(ModelConfig(dim=D, num_heads=2, num_kv_heads=1, num_experts=E), E)
    torch.nn.init.normal_(router.weight_ED)
    x_TD = torch.randn(T, D).to(dtype)
    expected = x_TD.double() @ router.weight_ED.double().T / D**0.5
    logits_TE = router(x_TD).logits_TE
    assert logits_TE.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(logits_TE.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "by_function"),
    [
        ({"router_top_k": K, "gate_scale": 2.5}, lambda logits: softmax_topk(logits, K, True, 2.5)),
        ({"router_top_k": K, "renormalize_gates": False}, lambda logits: softmax_topk(logits, K, False)),
        ({"router_top_k": 1, "gate_scale": 0.0}, lambda logits: softmax_topk(logits, 1, False, E)),
        ({"router_type": "switch", "capacity_factor": 0.6}, lambda logits: switch(logits, 5)),  # 0.6 * 37 / 5 = 4.44
        ({"router_type": "switch", "gate_scale": 0.0, "capacity_factor": 9.0}, lambda logits: switch(logits, T, E)),
        ({"router_type": "sigmoid", "router_threshold": 0.3}, lambda logits: sigmoid(logits, 0.3)),
    ],
)
def test_the_configuration_is_heeded(changes, by_function):
    router = Router(ModelConfig(dim=D, num_heads=2, num_kv_heads=1, num_experts=E, base_expansion=1.0, **changes), E)
    torch.nn.init.normal_(router.weight_ED, std=3.0)
    x_TD = torch.randn(T, D)
    for ours, expected in zip(router(x_TD), by_function(x_TD @ router.weight_ED.T / D**0.5), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("size", [-200.0, 200.0])
@pytest.mark.parametrize(
    "route",
    [lambda x: softmax_topk(x, K, True), lambda x: switch(x, 4), lambda x: sigmoid(x, 0.5)],
    ids=["softmax_topk", "switch", "sigmoid"],
)
def test_losses_stay_finite_at_extreme_logits(route, size):
    logits = (LOGITS + size).requires_grad_()  # in float32, sigmoid(-104) and below are 0
    routing = route(logits)
    loss = balance_loss(routing) + z_loss(routing.logits_TE) + routing.gate_TK.sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all()


def test_no_expert_is_an_id_of_its_own():
    expert_TK = torch.tensor([[0, E], [E, E], [2, 0], [4, E]])
    assert tokens_per_expert(expert_TK, E).tolist() == [2, 0, 1, 0, 1]
    dropped = switch(torch.eye(E)[[2, 2, 1]], capacity=1)
    assert dropped.expert_TK.tolist() == [[2], [E], [1]]
    assert dropped.gate_TK[1] == 0
