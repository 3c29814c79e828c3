"""What is minimised, against sums by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.model.loss import (
    IGNORED,
    Balancing,
    Loss,
    balance_losses,
    cross_entropy,
    documents,
    shifted_targets,
    total_loss,
)
from moebius.model.moe import MoE
from moebius.model.router import Router
from moebius.model.statistics import LayerStats, layer_stats
from moebius.model.transformer import Transformer, seeded
from tests.model.tiny import B, D, E, S, V, random_tokens, tiny

END = 9
SEQUENCES = 4  # of the batches that are split in two
VARIANTS: dict[str, dict[str, Any]] = {
    "top-1": {},
    "top-2 of unequal layers": {"router_top_k": 2, "num_experts": (3, 5)},
    "top-2 of sigmoids": {"router_top_k": 2, "router_score": "sigmoid"},
    "switch": {"router_type": "switch", "capacity_factor": float(E)},
    "sigmoid": {"router_type": "sigmoid", "base_expansion": 1.0},
    "with MTP": {"use_mtp": True},
}


def test_documents_begin_with_their_separator():
    tokens_BL = torch.tensor([[1, END, 2, 3, END, END, 4], [END, 1, 2, 3, 4, 5, 6]])
    assert documents(tokens_BL, END).tolist() == [[0, 1, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1, 1]]


def test_targets_by_hand():
    tokens_BL = torch.tensor([[1, 2, END, 3, 4, END, 5, 6]])
    document_BL = documents(tokens_BL, END)
    assert shifted_targets(tokens_BL, 1, 4, None).tolist() == [[2, END, 3, 4]]
    assert shifted_targets(tokens_BL, 3, 4, None).tolist() == [[3, 4, END, 5]]
    # the separator that ends a document is its last target; what follows is another document's
    assert shifted_targets(tokens_BL, 1, 4, document_BL).tolist() == [[2, END, 3, 4]]
    assert shifted_targets(tokens_BL, 2, 4, document_BL).tolist() == [[END, IGNORED, 4, END]]
    assert shifted_targets(tokens_BL, 3, 4, document_BL).tolist() == [[IGNORED, IGNORED, END, IGNORED]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cross_entropy_is_float32_and_leaves_out_what_is_ignored(dtype):
    torch.manual_seed(0)
    logits_BSV = (torch.randn(B, S, V) * 5).to(dtype).requires_grad_()
    target_BS = torch.randint(V, (B, S))
    target_BS[0, 2] = target_BS[1, 6] = IGNORED
    loss = cross_entropy(logits_BSV, target_BS)
    losses = []
    for b in range(B):
        for t in range(S):
            if target_BS[b, t] != IGNORED:
                logits_V = logits_BSV[b, t].double()
                losses.append(logits_V.exp().sum().log() - logits_V[target_BS[b, t]])
    assert loss.dtype == torch.float32
    assert len(losses) == B * S - 2
    assert loss.item() == pytest.approx(sum(losses).item() / len(losses), rel=1e-6)  # pyright: ignore[reportAttributeAccessIssue]
    (gradient_BSV,) = torch.autograd.grad(loss, logits_BSV)
    assert not gradient_BSV[0, 2].any() and not gradient_BSV[1, 6].any()
    assert gradient_BSV[0, 1].any()


def layer(balance: float, z: float) -> LayerStats:
    """Of a layer with these losses, its tokens evenly spread."""
    tokens = 20.0
    even_E = torch.full((E,), tokens / E)
    nothing = torch.zeros(())
    return LayerStats(
        tokens_per_expert_E=even_E,
        chosen_PE=even_E[None],
        probability_PE=balance * even_E[None],
        squared_log_partition=torch.tensor(z * tokens),
        entropy=nothing,
        gate=nothing,
        unrouted=nothing,
        dropped=nothing,
        not_finite=nothing,
        tokens=torch.tensor(tokens),
    )


def test_the_total_adds_each_layer_in_full():
    config = tiny(aux_loss_coeff=0.1, router_z_loss_coeff=0.01, mtp_loss_coeff=0.5)
    stats = (layer(1.0, 3.0), layer(2.0, 5.0), layer(4.5, 1.0))
    loss = total_loss(torch.tensor(7.0), torch.tensor(8.0), stats, config)
    assert loss.total.item() == pytest.approx(7.0 + 0.5 * 8.0 + 0.1 * (1 + 2 + 4.5) + 0.01 * (3 + 5 + 1))
    assert (loss.next_token.item(), loss.stats) == (7.0, stats)
    assert loss.mtp is not None and loss.mtp.item() == 8.0
    assert loss.balance_M is not None and loss.balance_M.tolist() == pytest.approx([1.0, 2.0, 4.5])
    assert loss.z_M is not None and loss.z_M.tolist() == pytest.approx([3.0, 5.0, 1.0])


def test_each_layer_has_its_own_coefficient():
    config = tiny(aux_loss_coeff=0.1, router_z_loss_coeff=0.01)
    stats = (layer(1.0, 3.0), layer(2.0, 5.0), layer(4.5, 1.0))
    loss = total_loss(torch.tensor(7.0), None, stats, config, Balancing([0.5, 0.0, 3.0]))
    assert loss.total.item() == pytest.approx(7.0 + 0.5 * 1 + 3 * 4.5 + 0.01 * (3 + 5 + 1))
    assert loss.balance_M is not None and loss.balance_M.tolist() == pytest.approx([1.0, 2.0, 4.5])
    with pytest.raises(ValueError, match="argument 1"):
        total_loss(torch.tensor(7.0), None, stats, config, Balancing([0.5, 0.0]))


def test_a_coefficient_scales_the_gradient_of_its_layer():
    """The MTP layer's is the last."""
    model, tokens_BL = seeded(0, tiny(use_mtp=True)).double(), random_tokens(tiny(use_mtp=True))
    logits = [torch.randn(B * S, E, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    router = Router(tiny(), E)
    stats = tuple(layer_stats(router, router.route(logits_TE), 1) for logits_TE in logits)
    alone = [
        torch.autograd.grad(balance_losses([each])[0], x, retain_graph=True)[0] for each, x in zip(stats, logits, strict=True)
    ]
    loss = total_loss(torch.zeros(()), None, stats, tiny(), Balancing([0.5, 0.0, 3.0])).total
    for coefficient, gradient, expected in zip((0.5, 0.0, 3.0), torch.autograd.grad(loss, logits), alone, strict=True):
        torch.testing.assert_close(gradient, coefficient * expected)
    loss = model.loss(tokens_BL, balancing=Balancing([0.5, 0.0, 3.0]))
    assert loss.balance_M is not None and loss.mtp is not None
    by_hand = loss.next_token + 0.3 * loss.mtp + 0.5 * loss.balance_M[0] + 3 * loss.balance_M[2]
    torch.testing.assert_close(loss.total, by_hand)


def test_a_dense_model_without_mtp_has_one_part():
    loss = total_loss(torch.tensor(7.0), None, (), tiny(num_experts=0, base_expansion=1.0))
    assert loss.total.item() == 7.0
    assert (loss.mtp, loss.balance_M, loss.z_M) == (None, None, None)


def balance_by_hand(chosen: list[list[int]], probs: list[list[float]], num_experts: int) -> float:
    """Equation 4 of the Switch Transformer: E times the sum of share times mean probability."""
    loss = 0.0
    for expert in range(num_experts):
        share = sum(row.count(expert) for row in chosen) / len(chosen)
        loss += share * sum(row[expert] / sum(row) for row in probs) / len(probs)
    return num_experts * loss


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "global_batch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_scope_of_the_balance_loss_by_hand(variant, scope):
    moe = MoE(tiny(**{**VARIANTS[variant], "num_experts": E}, aux_loss_scope=scope), E, 64, lambda x_TD, routing, weights: x_TD)
    assert moe.router is not None
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    x_BSD = torch.randn(B, S, D)
    _, stats = moe(x_BSD)
    routing = moe.router(x_BSD.flatten(0, 1))
    chosen, probs = routing.expert_TK.tolist(), routing.probs_TE.double().tolist()
    whole = balance_by_hand(chosen, probs, E)
    sequences = [balance_by_hand(chosen[b * S : (b + 1) * S], probs[b * S : (b + 1) * S], E) for b in range(B)]
    expected = sum(sequences) / B if scope == "sequence" else whole
    assert abs(whole - sum(sequences) / B) > 0.01
    assert balance_losses([stats]).tolist() == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("use_mtp", [False, True])
@pytest.mark.parametrize("router_type", ["softmax_topk", "switch"])
def test_of_sequences_it_is_the_mean_of_each_alone(router_type, use_mtp):
    changes = {"router_type": router_type, "capacity_factor": float(E), "use_mtp": use_mtp}
    model = decided(tiny(aux_loss_scope="sequence", **changes))
    tokens_BL = random_tokens(model.config)
    together = model.loss(tokens_BL).balance_M
    alone = [model.loss(tokens_BL[b : b + 1]).balance_M for b in range(B)]
    assert together is not None
    torch.testing.assert_close(together, torch.stack([each for each in alone if each is not None]).mean(dim=0))
    over_all = decided(tiny(**changes)).loss(tokens_BL).balance_M
    assert over_all is not None and ((over_all - together).abs() > 0.01).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_halves_with_the_counts_of_the_whole_are_the_whole(variant):
    """Losses and the gradient of every parameter: what global_batch is for."""
    model = decided(tiny(aux_loss_scope="global_batch", aux_loss_coeff=0.7, router_z_loss_coeff=0.2, **VARIANTS[variant]))
    tokens_BL = random_tokens(model.config, batch=SEQUENCES)
    whole = model.loss(tokens_BL)
    expected = gradients_of(model, whole.total)
    counts_X = counts_of(whole.stats)
    seen: list[Tensor] = []

    def over_batch(part_X: Tensor) -> Tensor:
        seen.append(part_X)
        return counts_X

    coefficients = [0.7] * len(whole.stats)
    halves = [model.loss(half_BL, balancing=Balancing(coefficients, over_batch)) for half_BL in tokens_BL.chunk(2)]
    assert torch.equal(sum(seen), counts_X)  # pyright: ignore[reportArgumentType]
    assert not torch.equal(*seen) and not any(part_X.requires_grad for part_X in seen)
    for name in ("total", "next_token", "balance_M", "z_M"):
        torch.testing.assert_close(mean_of(halves, name), getattr(whole, name), rtol=0, atol=1e-5)
    gradients = gradients_of(model, mean_of(halves, "total"))
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    # balanced each by itself, the halves have another loss and another gradient
    apart = [model.loss(half_BL, balancing=Balancing(coefficients)) for half_BL in tokens_BL.chunk(2)]
    assert ((mean_of(apart, "balance_M") - mean_of(halves, "balance_M")).abs() > 1e-3).all()
    for name, gradient in gradients_of(model, mean_of(apart, "total")).items():
        if "router" in name:
            assert (gradient - expected[name]).norm() > 1e-3 * expected[name].norm(), name


def decided(config: ModelConfig) -> Transformer:
    """In float64, its routers' weights large enough that tokens differ in their experts."""
    model = seeded(0, config).double()
    for name, parameter in model.named_parameters():
        if "router" in name:
            torch.nn.init.normal_(parameter)
    return model


def counts_of(stats: Sequence[LayerStats]) -> Tensor:
    """counts_X: layer after layer what its experts were chosen for, and its tokens."""
    return torch.cat([torch.cat([layer.chosen_PE[0], layer.tokens[None]]) for layer in stats])


def mean_of(losses: list[Loss], name: str) -> Tensor:
    return torch.stack([getattr(loss, name) for loss in losses]).mean(dim=0)


def gradients_of(model: Transformer, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
