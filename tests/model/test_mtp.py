"""Multi-token prediction, compared with the computation written out.

Three passes are chained, the targets are shifted by hand, and every offset has its own bias.
"""

import pytest
import torch
from torch import Tensor

from moebius.model.loss import IGNORED, documents, shifted_targets
from moebius.model.transformer import Transformer, lookahead, seeded
from moebius.moe.balance import balance_losses
from moebius.moe.statistics import LayerStats
from tests.model.tiny import NUM_LAYERS, ROUTERS, B, E, S, V, random_tokens, tiny

OFFSETS = (2, 3, 4)
END = 0


def with_documents() -> Tensor:
    """Return tokens_BL with L = S + 4, in which END begins every document."""
    tokens_BL = random_tokens(tiny(use_mtp=True), lowest=1)
    for row, column in ((0, 0), (0, 3), (0, 4), (1, 2), (1, 7)):
        tokens_BL[row, column] = END
    return tokens_BL


def hand_target(tokens: list[int], place: int, offset: int, is_split: bool) -> int | None:
    """Return the token `offset` further on, or None if it lies beyond the document.

    The END that begins the next document still counts.
    """
    if is_split and END in tokens[place + 1 : place + offset]:
        return None
    return tokens[place + offset]


def mtp_model(**changes) -> Transformer:
    model = seeded(0, tiny(use_mtp=True, **changes)).double()
    assert model.mtp is not None
    torch.nn.init.normal_(model.mtp.bias_OV)
    return model


def mtp_by_hand(model: Transformer, tokens_BL: Tensor, is_split: bool) -> tuple[Tensor, list[int]]:
    """Return the mean of the offsets' mean losses, and the number of targets of each offset."""
    assert model.mtp is not None
    document_BS = documents(tokens_BL, END)[:, :S] if is_split else None
    state_BSD, _ = model.hidden(tokens_BL[:, :S], document_BS)
    means, counts = [], []
    for offset, bias_V in zip(OFFSETS, model.mtp.bias_OV, strict=True):
        state_BSD = state_BSD + model.mtp.moe(model.mtp.norm(state_BSD))[0]
        logits_BSV = model.norm(state_BSD) @ model.lm_head.weight.T + bias_V
        logprob_BSV = logits_BSV - logits_BSV.exp().sum(dim=-1, keepdim=True).log()
        losses = []
        for b in range(B):
            for t in range(S):
                target = hand_target(tokens_BL[b].tolist(), t, offset, is_split)
                if target is not None:
                    losses.append(-logprob_BSV[b, t, target])
        means.append(torch.stack(losses).mean())
        counts.append(len(losses))
    return torch.stack(means).mean(), counts


@pytest.mark.parametrize("offset", [1, *OFFSETS])
@pytest.mark.parametrize("is_split", [False, True])
def test_targets_are_hand_shifted(offset, is_split):
    tokens_BL = with_documents()
    target_BS = shifted_targets(
        tokens_BL, offset, S, documents(tokens_BL, END) if is_split else None
    )
    for row, targets in zip(tokens_BL.tolist(), target_BS.tolist(), strict=True):
        by_hand = [hand_target(row, place, offset, is_split) for place in range(S)]
        assert targets == [IGNORED if target is None else target for target in by_hand]
    assert (IGNORED in target_BS) == (is_split and offset > 1)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("is_split", [False, True])
def test_the_loss_written_out(router, is_split):
    model, tokens_BL = mtp_model(**ROUTERS[router]), with_documents()
    loss = model.loss(tokens_BL, END if is_split else None)
    expected, counts = mtp_by_hand(model, tokens_BL, is_split)
    assert counts[0] > counts[1] > counts[2] > 0 if is_split else counts == [B * S] * 3
    assert loss.mtp is not None
    # The cross-entropy is computed in float32.
    torch.testing.assert_close(loss.mtp.double(), expected, rtol=0, atol=1e-5)


def test_each_bias_gets_the_gradient_of_its_own_offset():
    """The gradient of a bias is the mean probability minus the frequency of the target."""
    model, tokens_BL = mtp_model(aux_loss_coeff=0.0, mtp_loss_coeff=1.0), with_documents()
    assert model.mtp is not None
    model.loss(tokens_BL).total.backward()
    state_BSD, _ = model.hidden(tokens_BL[:, :S])
    for place, (ahead_BSD, bias_V) in enumerate(model.mtp(state_BSD)[0]):
        probability_BSV = (model.norm(ahead_BSD) @ model.lm_head.weight.T + bias_V).softmax(dim=-1)
        targets = tokens_BL[:, OFFSETS[place] : OFFSETS[place] + S].flatten()
        frequency_V = targets.bincount(minlength=V) / (B * S)
        expected_V = (probability_BSV.mean(dim=(0, 1)) - frequency_V) / 3
        assert model.mtp.bias_OV.grad is not None
        torch.testing.assert_close(model.mtp.bias_OV.grad[place], expected_V, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scope", "groups"), [("sequence", B), ("micro_batch", 1)])
def test_three_passes_through_one_layer_are_counted_together(scope, groups):
    model = mtp_model(aux_loss_scope=scope)
    assert model.mtp is not None
    passes: list[LayerStats] = []
    model.mtp.moe.register_forward_hook(lambda module, inputs, output: passes.append(output[1]))
    loss = model.loss(with_documents())
    stats = loss.stats
    assert len(passes) == 3 and len(stats) == NUM_LAYERS + 1
    taken_E = torch.stack([part.tokens_per_expert_E for part in passes]).sum(dim=0)
    assert stats[-1].tokens_per_expert_E.tolist() == taken_E.tolist()
    assert stats[-1].tokens_per_expert_E.sum() == stats[-1].tokens == 3 * B * S
    # The balance loss covers the tokens of all three passes together, group by group.
    size = 3 * B * S / groups
    share_PE = sum(part.chosen_PE for part in passes) / size
    probability_PE = sum(part.probability_PE for part in passes) / size
    assert share_PE.shape == (groups, E)  # pyright: ignore[reportAttributeAccessIssue]
    balance = sum(E * share_PE[g] @ probability_PE[g] for g in range(groups)) / groups
    assert loss.balance_M is not None and loss.z_M is not None
    torch.testing.assert_close(loss.balance_M[-1], balance)
    assert not torch.isclose(loss.balance_M[-1], balance_losses(passes[:1])[0], rtol=1e-4)
    z = sum(part.squared_log_partition / (B * S) for part in passes) / 3
    torch.testing.assert_close(loss.z_M[-1], z)


def test_a_dense_model_has_a_dense_layer_for_it():
    model = mtp_model(num_experts=0, base_expansion=1.0)
    loss = model.loss(with_documents())
    assert loss.stats == () and loss.balance_M is None and loss.z_M is None
    assert loss.mtp is not None


def test_off_costs_nothing():
    on, off = tiny(use_mtp=True), tiny()
    assert (lookahead(on), lookahead(off)) == (4, 1)
    model = seeded(0, off)
    assert not [name for name, _ in model.named_parameters() if "mtp" in name]
    loss = model.loss(random_tokens(off))
    assert loss.mtp is None and len(loss.stats) == NUM_LAYERS
    assert len(loss.stats[-1].tokens_per_expert_E) == E
