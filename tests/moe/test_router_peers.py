"""The routers compared with those of the models in transformers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.moe.router import sigmoid, softmax_topk, switch
from tests.moe.routers import BIAS, LOGITS, E, T, losses_of, router_of


@pytest.mark.parametrize("k", range(1, E + 1))
def test_softmax_topk_is_mixtrals(k):
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    router = mixtral.MixtralTopKRouter(
        SimpleNamespace(num_experts_per_tok=k, num_local_experts=E, hidden_size=E)
    )
    router.weight.data = torch.eye(E)  # passes the logits on
    _, gates, experts = router(LOGITS)
    ours = softmax_topk(LOGITS, k, renormalize=True)
    assert torch.equal(ours.expert_TK, experts)
    if k == 1:  # Mixtral renormalizes the gate to the constant 1, and we do not
        assert torch.equal(gates, torch.ones(T, 1))
        gates = LOGITS.softmax(-1).max(-1, keepdim=True).values
    torch.testing.assert_close(ours.gate_TK, gates)
    balance = mixtral.load_balancing_loss_func((LOGITS,), E, k)
    torch.testing.assert_close(losses_of(ours, router_top_k=k)[0], balance)


@pytest.mark.parametrize("capacity", [1, 5, T])
def test_switch_is_switch_transformers(capacity):
    """This uses one sequence, because transformers gives each sequence its own capacity."""
    peer = pytest.importorskip(
        "transformers.models.switch_transformers.modeling_switch_transformers"
    )
    settings = SimpleNamespace(
        num_experts=E,
        expert_capacity=capacity,
        hidden_size=E,
        router_bias=False,
        router_jitter_noise=0.0,
        router_ignore_padding_tokens=False,
        router_dtype="float32",
    )
    router = peer.SwitchTransformersTop1Router(settings)
    router.classifier.weight.data = torch.eye(E)
    outputs = router(LOGITS[None])  # in an order that differs between versions of transformers
    mask = next(output for output in outputs if not output.is_floating_point())
    probability = next(
        output for output in outputs if output.is_floating_point() and output.shape[-1] == 1
    )
    if mask.dim() == 4:  # up to version 5.17 the running count goes along an axis of size 1
        mask = mask.squeeze(2)
        if capacity < T:
            pytest.skip("this version of transformers never drops a token")
    ours = switch(LOGITS, capacity)
    kept = mask[0].any(-1)
    assert kept.sum() == LOGITS.argmax(-1).bincount(minlength=E).clamp(max=capacity).sum()
    assert torch.equal(ours.expert_TK[:, 0], torch.where(kept, mask[0].argmax(-1), E))
    torch.testing.assert_close(ours.gate_TK[:, 0], torch.where(kept, probability[0, :, 0], 0.0))
    balance, z = losses_of(ours, router_type="switch")
    expected = peer.load_balancing_loss_func(LOGITS[None].softmax(-1), LOGITS[None].argmax(-1))
    torch.testing.assert_close(balance, expected)
    torch.testing.assert_close(z, peer.router_z_loss_func(LOGITS[None]))


def deepseeks(k: int, scale: float, renormalize: bool, bias_E: Tensor) -> Any:
    """Return DeepSeek-V3's router without groups of experts; it passes the logits on."""
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    settings = SimpleNamespace(
        num_experts_per_tok=k,
        num_local_experts=E,
        n_routed_experts=E,
        hidden_size=E,
        routed_scaling_factor=scale,
        n_group=1,
        topk_group=1,
        norm_topk_prob=renormalize,
    )
    router = deepseek.DeepseekV3TopkRouter(settings)
    router.weight.data = torch.eye(E)
    router.e_score_correction_bias.copy_(bias_E)
    return router


@pytest.mark.parametrize("k", range(1, E + 1))
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    "bias_E", [torch.zeros(E), BIAS, 9 * BIAS], ids=["none", "small", "large"]
)
def test_topk_of_sigmoids_is_deepseeks(k, renormalize, bias_E):
    _, gates, experts = deepseeks(k, 2.5, renormalize, bias_E)(LOGITS)
    router = router_of(
        bias_E=bias_E,
        router_score="sigmoid",
        router_top_k=k,
        renormalize_gates=renormalize,
        gate_scale=2.5,
    )
    ours = router.route(LOGITS)
    # DeepSeek's experts are not sorted.
    assert torch.equal(ours.expert_TK.sort(-1).values, experts.sort(-1).values)
    if k == 1 and renormalize:  # DeepSeek's gate is then a constant, and ours is not
        torch.testing.assert_close(gates, torch.full((T, 1), 2.5))
        gates = 2.5 * LOGITS.sigmoid().gather(1, experts)
    expected_TE = torch.zeros(T, E).scatter(1, experts, gates)
    gate_TE = torch.zeros(T, E).scatter(1, ours.expert_TK, ours.gate_TK)
    torch.testing.assert_close(gate_TE, expected_TE)
    overturned = (experts.sort(-1).values != LOGITS.topk(k).indices.sort(-1).values).any(-1)
    assert overturned.any() == (bias_E.any().item() and k < E)


@pytest.mark.parametrize("k", [1, 2, E])
def test_sigmoid_gates_are_deepseeks(k):
    """A threshold that only a token's best k experts pass gives the experts of top-k."""
    _, gates, experts = deepseeks(k, 2.5, False, torch.zeros(E))(LOGITS)
    expected_TE = torch.zeros(T, E).scatter(1, experts, gates)
    for token in range(T):
        best = sorted(LOGITS[token].sigmoid().tolist(), reverse=True)
        threshold = (best[k - 1] + [*best, 0.0][k]) / 2
        ours = sigmoid(LOGITS[token : token + 1], threshold, scale=2.5)
        expected = [*experts[token].tolist(), *[E] * (E - k)]
        assert sorted(ours.expert_TK[0].tolist()) == sorted(expected)
        torch.testing.assert_close(ours.gate_TK[0], expected_TE[token])
