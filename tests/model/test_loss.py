"""What is minimised, against sums by hand."""

import pytest
import torch

from moebius.model.loss import IGNORED, cross_entropy, documents, shifted_targets, sum_of, total_loss
from moebius.model.moe import LayerStats
from tests.model.tiny import B, E, S, V, tiny

END = 9


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
    return LayerStats(torch.ones(E, dtype=torch.long), torch.tensor(balance), torch.tensor(z))


def test_the_total_adds_each_layer_in_full():
    config = tiny(aux_loss_coeff=0.1, router_z_loss_coeff=0.01, mtp_loss_coeff=0.5)
    stats = (layer(1.0, 3.0), layer(2.0, 5.0), layer(4.5, 1.0))
    loss = total_loss(torch.tensor(7.0), torch.tensor(8.0), stats, config)
    assert loss.total.item() == pytest.approx(7.0 + 0.5 * 8.0 + 0.1 * (1 + 2 + 4.5) + 0.01 * (3 + 5 + 1))
    assert (loss.next_token.item(), loss.stats) == (7.0, stats)
    assert loss.mtp is not None and loss.mtp.item() == 8.0
    assert loss.balance is not None and loss.balance.item() == pytest.approx(2.5)  # what is reported is a layer's mean
    assert loss.z is not None and loss.z.item() == pytest.approx(3.0)


def test_a_dense_model_without_mtp_has_one_part():
    loss = total_loss(torch.tensor(7.0), None, (), tiny(num_experts=0, base_expansion=1.0))
    assert loss.total.item() == 7.0
    assert (loss.mtp, loss.balance, loss.z) == (None, None, None)


def test_sum_of():
    assert sum_of([torch.tensor(value) for value in (1.0, 2.5, 4.0)]).item() == 7.5
