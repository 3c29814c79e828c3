"""Verified drafts have the distribution of the model, whatever drafted them."""

import pytest
import torch

from moebius.infer.sampling import draw
from moebius.infer.speculation import verified

V, O = 4, 2


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the model's and the draft's probabilities of a token, given the token before it."""
    generator = torch.Generator().manual_seed(1)
    p_VV = torch.rand(V, V, generator=generator, dtype=torch.double) + 0.05
    p_VV[2, 1] = 0.0
    q_OV = torch.rand(O, V, generator=generator, dtype=torch.double)
    q_OV[1, 3] = 0.0
    return p_VV / p_VV.sum(dim=1, keepdim=True), q_OV / q_OV.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_tokens_have_the_distribution_of_the_model(limit):
    """Compare three tokens in a row with their exact probabilities, by a chi-squared test."""
    num_texts = 400_000
    p_VV, q_OV = tables()
    generator = torch.Generator().manual_seed(limit)
    uniform = torch.rand(num_texts, 11, generator=generator, dtype=torch.double)
    q_BOV = q_OV.expand(num_texts, O, V)
    draft_BO = draw(q_BOV, uniform[:, :O])
    # The first token depends on the token 0 before it, the second one on the first, and so on.
    before_BS = torch.cat([torch.zeros(num_texts, 1, dtype=torch.long), draft_BO], dim=1)
    limit_B = torch.full((num_texts,), limit)
    kept = verified(p_VV[before_BS], q_BOV, draft_BO, limit_B, uniform[:, O : 2 * O + 1])
    assert kept.accepted_B.max() == limit
    tokens_BS = torch.zeros(num_texts, O + 1, dtype=torch.long)
    last_B = torch.zeros(num_texts, dtype=torch.long)
    for at in range(O + 1):
        drawn_B = draw(p_VV[last_B], uniform[:, 2 * O + 2 + at])  # by the model alone, after them
        following_B = torch.where(kept.accepted_B == at, kept.token_B, drawn_B)
        last_B = (
            draft_BO[:, at].where(at < kept.accepted_B, following_B) if at < O else following_B
        )
        tokens_BS[:, at] = last_B
    counts = (tokens_BS @ torch.tensor([V * V, V, 1])).bincount(minlength=V**3).double()
    expected = (p_VV[0][:, None, None] * p_VV[:, :, None] * p_VV[None]).flatten() * num_texts
    possible = expected > 0
    assert not counts[~possible].any()
    chi2 = ((counts - expected)[possible].square() / expected[possible]).sum()
    freedom = int(possible.sum()) - 1
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations


def test_a_draft_by_the_model_itself_is_always_accepted():
    p_VV, _ = tables()
    p_BSV = p_VV[0].expand(1000, O + 1, V)
    uniform = torch.rand(1000, 2 * O + 1, dtype=torch.double)
    draft_BO = draw(p_BSV[:, :O], uniform[:, :O])
    kept = verified(
        p_BSV, p_BSV[:, :O], draft_BO, torch.full((1000,), O), uniform[:, O : 2 * O + 1]
    )
    assert (kept.accepted_B == O).all()


def test_greedy_drafts_are_accepted_up_to_the_first_other_token():
    likeliest_S = torch.tensor([2, 3, 1])
    p_BSV = torch.nn.functional.one_hot(likeliest_S, V).double().expand(4, 3, V)
    draft_BO = torch.tensor([[2, 3], [2, 0], [1, 3], [2, 3]])
    q_BOV = torch.nn.functional.one_hot(draft_BO, V).double()
    limit_B = torch.tensor([2, 2, 2, 1])
    kept = verified(p_BSV, q_BOV, draft_BO, limit_B, torch.rand(4, 3).double())
    assert kept.accepted_B.tolist() == [2, 1, 0, 1]
    assert kept.token_B.tolist() == [1, 3, 2, 3]
