"""Routing and its statistics by kernels, compared with the readable reference.

The tests run in Triton's interpreter and on a GPU.
"""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

# This import comes first, because it skips the whole file where there is no triton.
from tests.kernels.interpreter import DEVICES

from moebius.config import ModelConfig  # isort: skip
from moebius.kernels import router as router_kernels  # isort: skip
from moebius.kernels.choice import Rule, choose  # isort: skip
from moebius.kernels.routing_sums import routing_sums  # isort: skip
from moebius.moe import router as router_module  # isort: skip
from moebius.moe import statistics  # isort: skip
from moebius.moe.router import Router, Routing  # isort: skip
from moebius.moe.statistics import LayerStats, layer_stats  # isort: skip

WITH_GRADIENT = ("probability_PE", "squared_log_partition")
VARIANTS: dict[str, dict[str, Any]] = {
    "top-1": {"gate_scale": 0.0},
    "top-3": {"router_top_k": 3, "gate_scale": 2.5},
    "top-3 not renormalized": {"router_top_k": 3, "renormalize_gates": False},
    "top-1 of sigmoids": {"router_score": "sigmoid"},
    "top-3 of sigmoids": {"router_top_k": 3, "router_score": "sigmoid"},
    "top-3 of sigmoids not renormalized": {
        "router_top_k": 3,
        "router_score": "sigmoid",
        "renormalize_gates": False,
    },
    "switch": {"router_type": "switch", "capacity_factor": 0.8},
    "switch without room": {"router_type": "switch", "capacity_factor": 1e-3},
    "sigmoid": {"router_type": "sigmoid", "router_threshold": 0.4},
    "sigmoid above every score": {"router_type": "sigmoid", "router_threshold": 1.0},
}
# tokens, experts, model dimension
SIZES = [
    (37, 5, 24),
    *(
        pytest.param(size, marks=pytest.mark.heavy)
        for size in ((1, 4, 24), (300, 6, 72), (50, 64, 40))
    ),
]


def router_of(num_experts: int, dim: int, device: str, **changes: Any) -> Router:
    """Return a router whose choices differ between tokens, with a bias."""
    config = ModelConfig(
        dim=dim,
        num_heads=2,
        num_kv_heads=1,
        num_experts=num_experts,
        base_expansion=1.0,
        **changes,
    )
    router = Router(config, num_experts)
    torch.nn.init.normal_(router.weight_ED, std=2.0)
    router.bias_E.uniform_(-0.2, 0.2)
    return router.to(device)


def results(
    router: Router, x_TD: Tensor, groups: int, uses_kernels: bool
) -> tuple[Routing, LayerStats, list[Tensor]]:
    """Return routing, statistics, and the gradients of x and the weight from all outputs."""
    generator = torch.Generator().manual_seed(7)

    def upstream(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator).to(value.device)

    router.zero_grad()
    x_TD = x_TD.detach().requires_grad_()
    with (
        patch.object(router_module, "uses_kernels", lambda *_: uses_kernels),
        patch.object(statistics, "uses_kernels", lambda *_: uses_kernels),
    ):
        routing = router(x_TD)
        stats = layer_stats(router, routing, groups)
    outputs = [routing.gate_TK, routing.probs_TE, routing.logits_TE]
    outputs += [getattr(stats, name) for name in WITH_GRADIENT]
    loss = torch.stack([(upstream(value) * value).sum() for value in outputs]).sum()
    gradients = torch.autograd.grad(loss, [x_TD, router.weight_ED])
    return routing, stats, list(gradients)


def compare(router: Router, x_TD: Tensor, groups: int = 1) -> None:
    ours = results(router, x_TD, groups, uses_kernels=True)
    expected = results(router, x_TD, groups, uses_kernels=False)
    assert torch.equal(ours[0].expert_TK, expected[0].expert_TK)
    for part, expected_part in zip(ours, expected, strict=True):
        for value, figure in zip(part, expected_part, strict=True):
            assert value.dtype == figure.dtype and value.shape == figure.shape
    for part, expected_part in zip(ours[:2], expected[:2], strict=True):
        for value, figure in zip(part, expected_part, strict=True):
            torch.testing.assert_close(value, figure, rtol=1e-4, atol=2e-5)
    for value, figure in zip(ours[2], expected[2], strict=True):
        assert (value - figure).norm() <= 1e-5 * figure.norm()
    for name in LayerStats._fields:
        if name not in WITH_GRADIENT:
            assert not getattr(ours[1], name).requires_grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_reference(variant, size, device):
    torch.manual_seed(0)
    T, E, D = size
    router = router_of(E, D, device, **VARIANTS[variant])
    compare(router, torch.randn(T, D, device=device))


@pytest.mark.heavy
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", ["top-1", "top-3 of sigmoids", "switch", "sigmoid"])
def test_each_group_of_tokens_has_its_own_sums(variant, device):
    torch.manual_seed(0)
    compare(
        router_of(5, 24, device, **VARIANTS[variant]), torch.randn(3 * 171, 24, device=device), 3
    )


@pytest.mark.heavy
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("E", "k"),
    [
        (1, 1),
        (2, 2),
        (8, 8),
        (130, 8),
        (512, 7),
    ],
)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_with_one_expert_and_with_very_many(score, E, k, device):
    torch.manual_seed(0)
    router = router_of(E, 24, device, router_top_k=k, router_score=score)
    compare(router, torch.randn(33, 24, device=device))


@pytest.mark.heavy
@pytest.mark.parametrize("device", DEVICES)
def test_more_blocks_than_one_step_adds_up(device):
    """The counts of earlier blocks, and the sums of all blocks, take several steps."""
    torch.manual_seed(0)
    router = router_of(32, 8, device, router_type="switch", capacity_factor=0.9)
    compare(router, torch.randn(64 * 270, 8, device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_equal_sigmoids_are_chosen_by_their_logits(device):
    logits_TE = torch.tensor([[30.0, 40, 40, 20], [-200, -150, -300, -150], [1, 1, 1, 1]])
    logits_TE = logits_TE.to(device)
    bias_E = torch.zeros(4, device=device)
    ours = choose(logits_TE, bias_E, Rule(3, is_sigmoid=True, renormalizes=False, scale=1.0))
    expected = router_module.softmax_topk(logits_TE, 3, False, 1.0, bias_E, "sigmoid")
    assert torch.equal(ours[1], expected.expert_TK)
    assert ours[1].tolist() == [[1, 2, 0], [1, 3, 0], [0, 1, 2]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_second_derivative_is_refused(device):
    logits_TE = torch.randn(5, 4, device=device, requires_grad=True)
    gate_TK, _ = choose(logits_TE, torch.zeros(4, device=device), Rule(2, False, True, 1.0))
    (grad_TE,) = torch.autograd.grad(gate_TK.square().sum(), logits_TE, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad_TE.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_groups_that_are_not_equal_are_refused(device):
    logits_TE = torch.randn(6, 4, device=device)
    gate_TK, expert_TK = choose(logits_TE, logits_TE[0], Rule(2, False, True, 1.0))
    with pytest.raises(ValueError, match="6 tokens cannot be divided into 4 equal groups"):
        routing_sums(logits_TE, gate_TK, expert_TK, logits_TE[0], 4, False, False, 1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_odd_logits_are_routed_like_the_reference(variant, device):
    """Experts with equal scores are chosen by their number, as a stable sort would."""
    E = 5
    router = router_of(E, 24, device, **VARIANTS[variant])
    router.bias_E[0] = -torch.inf
    logits_TE = torch.randn(9, E, device=device)
    logits_TE[1:4] = torch.tensor([0.0, 100.0, -300.0], device=device)[:, None]
    logits_TE[4:7, 2] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)
    logits_TE[7:] = torch.tensor([torch.nan, -torch.inf], device=device)[:, None]

    def stable_topk(values: Tensor, k: int, dim: int) -> Any:
        order = values.argsort(dim=dim, descending=True, stable=True)
        return SimpleNamespace(indices=order[:, :k])

    ours_TE, expected_TE = (logits_TE.clone().requires_grad_() for _ in range(2))
    with patch.object(router_kernels, "logits", lambda *_: ours_TE):
        ours = router._route_by_kernels(torch.zeros(9, 24, device=device), torch.float32)
    with patch.object(Tensor, "topk", stable_topk):
        expected = router.route(expected_TE)
    assert torch.equal(ours.expert_TK, expected.expert_TK)
    torch.testing.assert_close(ours.gate_TK, expected.gate_TK, equal_nan=True)
    (grad_TE,) = torch.autograd.grad(ours.gate_TK.square().sum(), ours_TE)
    (expected_grad_TE,) = torch.autograd.grad(expected.gate_TK.square().sum(), expected_TE)
    is_finite_T = logits_TE.isfinite().all(dim=1)
    torch.testing.assert_close(
        grad_TE[is_finite_T], expected_grad_TE[is_finite_T], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("device", DEVICES)
def test_equal_softmax_scores_are_chosen_by_their_number(device):
    logits_TE = torch.tensor([[0.0, 3, 1, 3, 1, 3]], device=device)
    bias_E = torch.zeros(6, device=device)
    _, expert_TK = choose(logits_TE, bias_E, Rule(4, False, True, 1.0))
    assert expert_TK.tolist() == [[1, 3, 5, 2]]


@pytest.mark.heavy
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("variant", ["top-3", "top-3 of sigmoids", "switch", "sigmoid"])
def test_tokens_with_logits_that_are_not_finite_still_go_somewhere(variant, value, device):
    torch.manual_seed(0)
    router = router_of(5, 24, device, **VARIANTS[variant])
    x_TD = torch.randn(37, 24, device=device)
    x_TD[3] = value
    routing, stats, _ = results(router, x_TD, 1, uses_kernels=True)
    _, expected, _ = results(router, x_TD, 1, uses_kernels=False)
    assert ((routing.expert_TK >= 0) & (routing.expert_TK <= 5)).all()
    assert all(
        len(set(row)) == len(row) or variant == "sigmoid" for row in routing.expert_TK.tolist()
    )
    counts = routing.expert_TK.flatten().bincount(minlength=6)[:5]
    assert torch.equal(stats.tokens_per_expert_E.long(), counts)
    for name in ("not_finite", "vanished", "unrouted", "dropped", "tokens"):
        assert torch.equal(getattr(stats, name), getattr(expected, name)), name


@pytest.mark.heavy
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", ["top-3", "top-3 of sigmoids", "switch", "sigmoid"])
def test_the_same_input_gives_the_same_bits(variant, device):
    torch.manual_seed(0)
    router = router_of(5, 24, device, **VARIANTS[variant])
    x_TD = torch.randn(700, 24, device=device)
    first, second = (results(router, x_TD, 1, uses_kernels=True) for _ in range(2))
    for part, again in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part, again, strict=True))


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        *((pytest.param(*device.values, torch.float32, marks=device.marks)) for device in DEVICES),
        # Triton's interpreter multiplies bfloat16 numbers as if they were integers.
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("E", [8, 9, 40, 100])
def test_logits_are_as_exact_as_float32_and_gradients_as_what_is_kept(E, device, dtype):
    torch.manual_seed(0)
    T, D = 150, 200
    x_TD = torch.randn(T, D, device=device)
    kept_TD = x_TD.to(dtype).requires_grad_()
    weight_ED = torch.randn(E, D, device=device).requires_grad_()
    upstream_TE = torch.randn(T, E, device=device)
    logits_TE = router_kernels.logits(x_TD, weight_ED, kept_TD)
    exact_TE = x_TD.double() @ weight_ED.double().T / D**0.5
    assert (logits_TE - exact_TE).norm() < 2e-6 * exact_TE.norm()
    x_grad, weight_grad = torch.autograd.grad(logits_TE, [kept_TD, weight_ED], upstream_TE)
    exact = (
        upstream_TE.double() @ weight_ED.double() / D**0.5,
        upstream_TE.double().T @ kept_TD.double() / D**0.5,
    )
    assert x_grad.dtype == dtype and weight_grad.dtype == torch.float32
    is_wide = dtype == torch.float32
    for ours, figure, if_narrow in ((x_grad, exact[0], 4e-3), (weight_grad, exact[1], 1e-5)):
        assert (ours - figure).norm() < (2e-6 if is_wide else if_narrow) * figure.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("E", [4, 5, 64, 512])
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_gpu_with_many_tokens_it_is_the_reference(variant, E):
    """Scores are rounded differently, so a few tokens may choose another expert."""
    torch.manual_seed(0)
    router = router_of(E, 896, "cuda", **VARIANTS[variant])
    x_TD = torch.randn(4099, 896, device="cuda")
    ours = results(router, x_TD, 1, uses_kernels=True)
    expected = results(router, x_TD, 1, uses_kernels=False)
    differs = (ours[0].expert_TK != expected[0].expert_TK).float().mean()
    assert differs < 1e-3
    for value, figure in zip(ours[2], expected[2], strict=True):
        assert (value - figure).norm() < 2e-2 * figure.norm()
    if not differs:
        compare(router, x_TD)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["top-1", "top-3 of sigmoids", "switch", "sigmoid"])
def test_compiled_under_autocast_it_is_the_same_without_a_break(variant):
    torch.manual_seed(0)
    router = router_of(6, 64, "cuda", **VARIANTS[variant])
    x_TD = torch.randn(1000, 64, device="cuda", requires_grad=True)

    def run(x_TD: Tensor) -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            routing = router(x_TD)
            stats = layer_stats(router, routing, 1)
        return [routing.gate_TK, routing.expert_TK, routing.logits_TE, *stats]

    def gradients(outputs: list[Tensor]) -> tuple[Tensor, ...]:
        loss = torch.stack([value.sum() for value in outputs if value.requires_grad]).sum()
        return torch.autograd.grad(loss, [x_TD, router.weight_ED])

    torch._dynamo.reset()
    eager, compiled = run(x_TD), torch.compile(run, fullgraph=True)(x_TD)
    for ours, expected in zip(compiled, eager, strict=True):
        assert torch.equal(ours, expected)
    for ours, expected in zip(gradients(compiled), gradients(eager), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-3)
