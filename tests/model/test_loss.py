"""The training loss and its parts, compared with calculations by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.model.head import head_cross_entropy
from moebius.model.loss import (
    IGNORED,
    Loss,
    cross_entropy,
    documents,
    shifted_targets,
    total_loss,
)
from moebius.model.transformer import Transformer, seeded
from moebius.moe.balance import Balancing
from moebius.moe.statistics import LayerStats
from tests.model.tiny import B, E, S, V, decided, random_tokens, tiny

END = 9
SEQUENCES = 4  # in each batch that is split into halves
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
    # the separator that ends a document is its last target; later tokens belong to the next one
    assert shifted_targets(tokens_BL, 1, 4, document_BL).tolist() == [[2, END, 3, 4]]
    assert shifted_targets(tokens_BL, 2, 4, document_BL).tolist() == [[END, IGNORED, 4, END]]
    expected = [[IGNORED, IGNORED, END, IGNORED]]
    assert shifted_targets(tokens_BL, 3, 4, document_BL).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cross_entropy_is_float32_and_skips_ignored_targets(dtype):
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
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    (gradient_BSV,) = torch.autograd.grad(loss, logits_BSV)
    assert not gradient_BSV[0, 2].any() and not gradient_BSV[1, 6].any()
    assert gradient_BSV[0, 1].any()


@pytest.mark.parametrize("chunks", [1, 3])
def test_every_id_of_a_vocabulary_counts_and_only_the_mark_is_ignored(chunks):
    """The mark must be no id, whatever the size of the vocabulary."""
    vocab_size = 400
    hidden_BSD, weight_VD = torch.randn(1, vocab_size, 8), torch.randn(vocab_size, 8)
    target_BS = torch.arange(vocab_size)[None]
    losses_T = -(hidden_BSD @ weight_VD.T).log_softmax(dim=-1)[0].diagonal()
    loss = head_cross_entropy(hidden_BSD, weight_VD, target_BS, chunks=chunks)
    assert loss.item() == pytest.approx(losses_T.mean().item(), rel=1e-5)


def layer(balance: float, z: float) -> LayerStats:
    """Return the statistics of a layer with these losses, whose tokens are spread evenly."""
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
        vanished=nothing,
        tokens=torch.tensor(tokens),
    )


THREE_LAYERS = (layer(1.0, 3.0), layer(2.0, 5.0), layer(4.5, 1.0))


def test_the_total_adds_each_layer_in_full():
    config = tiny(aux_loss_coeff=0.1, router_z_loss_coeff=0.01, mtp_loss_coeff=0.5)
    loss = total_loss(torch.tensor(7.0), torch.tensor(8.0), THREE_LAYERS, config)
    balance, z = 0.1 * (1 + 2 + 4.5), 0.01 * (3 + 5 + 1)
    assert loss.total.item() == pytest.approx(7.0 + 0.5 * 8.0 + balance + z)
    assert (loss.next_token.item(), loss.stats) == (7.0, THREE_LAYERS)
    assert loss.mtp is not None and loss.mtp.item() == 8.0
    assert loss.balance_M is not None and loss.balance_M.tolist() == pytest.approx([1.0, 2.0, 4.5])
    assert loss.z_M is not None and loss.z_M.tolist() == pytest.approx([3.0, 5.0, 1.0])


def test_each_layer_has_its_own_coefficient():
    config = tiny(aux_loss_coeff=0.1, router_z_loss_coeff=0.01)
    balancing = Balancing([0.5, 0.0, 3.0])
    loss = total_loss(torch.tensor(7.0), None, THREE_LAYERS, config, balancing)
    assert loss.total.item() == pytest.approx(7.0 + 0.5 * 1 + 3 * 4.5 + 0.01 * (3 + 5 + 1))
    assert loss.balance_M is not None and loss.balance_M.tolist() == pytest.approx([1.0, 2.0, 4.5])
    with pytest.raises(ValueError, match="2 coefficients for 3 layers"):
        total_loss(torch.tensor(7.0), None, THREE_LAYERS, config, Balancing([0.5, 0.0]))


def test_the_last_coefficient_is_the_mtp_layers():
    config = tiny(use_mtp=True)
    balancing = Balancing([0.5, 0.0, 3.0])
    loss = seeded(0, config).double().loss(random_tokens(config), balancing=balancing)
    assert loss.balance_M is not None and loss.mtp is not None
    by_hand = loss.next_token + 0.3 * loss.mtp + 0.5 * loss.balance_M[0] + 3 * loss.balance_M[2]
    torch.testing.assert_close(loss.total, by_hand)


def test_a_dense_model_without_mtp_has_one_part():
    loss = total_loss(torch.tensor(7.0), None, (), tiny(num_experts=0, base_expansion=1.0))
    assert loss.total.item() == 7.0
    assert (loss.mtp, loss.balance_M, loss.z_M) == (None, None, None)


@pytest.mark.parametrize("use_mtp", [False, True])
@pytest.mark.parametrize("router_type", ["softmax_topk", "switch"])
def test_balance_over_sequences_is_the_mean_of_each_sequence_alone(router_type, use_mtp):
    changes = {"router_type": router_type, "capacity_factor": float(E), "use_mtp": use_mtp}
    model = decided(tiny(aux_loss_scope="sequence", **changes))
    tokens_BL = random_tokens(model.config)
    together = model.loss(tokens_BL).balance_M
    alone = [model.loss(tokens_BL[b : b + 1]).balance_M for b in range(B)]
    assert together is not None
    mean_M = torch.stack([balance_M for balance_M in alone if balance_M is not None]).mean(dim=0)
    torch.testing.assert_close(together, mean_M)
    over_all = decided(tiny(**changes)).loss(tokens_BL).balance_M
    assert over_all is not None and ((over_all - together).abs() > 0.01).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_halves_with_the_counts_of_the_whole_are_the_whole(variant):
    """The losses and the gradient of every parameter agree, which is what global_batch is for."""
    model = decided(
        tiny(
            aux_loss_scope="global_batch",
            aux_loss_coeff=0.7,
            router_z_loss_coeff=0.2,
            **VARIANTS[variant],
        )
    )
    tokens_BL = random_tokens(model.config, batch=SEQUENCES)
    whole = model.loss(tokens_BL)
    expected = gradients_of(model, whole.total)
    counts_X = counts_of(whole.stats)
    parts: list[Tensor] = []

    def over_batch(part_X: Tensor) -> Tensor:
        parts.append(part_X)
        return counts_X

    coefficients = [0.7] * len(whole.stats)
    halves = [
        model.loss(half_BL, balancing=Balancing(coefficients, over_batch))
        for half_BL in tokens_BL.chunk(2)
    ]
    assert torch.equal(sum(parts), counts_X)  # pyright: ignore[reportArgumentType]
    assert not torch.equal(*parts) and not any(part_X.requires_grad for part_X in parts)
    for name in ("total", "next_token", "balance_M", "z_M"):
        torch.testing.assert_close(mean_of(halves, name), getattr(whole, name), rtol=0, atol=1e-5)
    gradients = gradients_of(model, mean_of(halves, "total"))
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient,
            expected[name],
            rtol=1e-4,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    # If each half is balanced on its own, the loss and the gradient differ.
    apart = [
        model.loss(half_BL, balancing=Balancing(coefficients)) for half_BL in tokens_BL.chunk(2)
    ]
    assert ((mean_of(apart, "balance_M") - mean_of(halves, "balance_M")).abs() > 1e-3).all()
    for name, gradient in gradients_of(model, mean_of(apart, "total")).items():
        if "router" in name:
            assert (gradient - expected[name]).norm() > 1e-3 * expected[name].norm(), name


def counts_of(stats: Sequence[LayerStats]) -> Tensor:
    """Return, for each layer, how often its experts were chosen, and its number of tokens."""
    return torch.cat([torch.cat([layer.chosen_PE[0], layer.tokens[None]]) for layer in stats])


def mean_of(losses: list[Loss], name: str) -> Tensor:
    return torch.stack([getattr(loss, name) for loss in losses]).mean(dim=0)


def gradients_of(model: Transformer, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
