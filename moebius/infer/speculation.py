"""Speculative sampling: keep as many drafted tokens as the model itself would have written.

A draft is several tokens that something cheap proposes. One forward pass of the model over all of
them gives the probabilities of each next token. A drafted token is accepted with the ratio of its
probability to that with which it was drafted; the first that is not is replaced by a draw from
what the draft has neglected. The tokens then have exactly the model's own distribution (Leviathan
et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318). Greedy probabilities
are 0 or 1: a drafted token is accepted if it is the likeliest one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from moebius.infer.sampling import draw


class Verified(NamedTuple):
    """What is kept of the drafts of several texts."""

    accepted_B: Tensor
    """Number of drafted tokens that are accepted."""
    token_B: Tensor
    """The token after them, which the model has written itself."""


def verified(
    p_BSV: Tensor, q_BOV: Tensor, draft_BO: Tensor, limit_B: Tensor, uniform_BS: Tensor
) -> Verified:
    """Return what is kept of the drafts; S = O + 1.

    p_BSV: the model's probabilities of the token after the text, after the first drafted token,
    and so on.
    q_BOV: the probabilities with which each drafted token was drawn.
    draft_BO: the drafted tokens.
    limit_B: number of drafted tokens that may be accepted. What is beyond it is as if it had never
    been drafted.
    uniform_BS: independent random numbers, at least 0 and below 1.
    """
    num_drafted = draft_BO.shape[1]
    p_BO = p_BSV[:, :num_drafted].gather(2, draft_BO[..., None])[..., 0]
    q_BO = q_BOV.gather(2, draft_BO[..., None])[..., 0]
    is_allowed_BO = torch.arange(num_drafted, device=p_BSV.device) < limit_B[:, None]
    is_accepted_BO = (uniform_BS[:, :num_drafted] * q_BO < p_BO) & is_allowed_BO
    accepted_B = is_accepted_BO.long().cumprod(dim=1).sum(dim=1)
    row_B = torch.arange(len(p_BSV), device=p_BSV.device)
    p_BV = p_BSV[row_B, accepted_B]
    if not num_drafted:
        return Verified(accepted_B, draw(p_BV, uniform_BS[:, -1]))
    q_BV = q_BOV[row_B, accepted_B.clamp(max=num_drafted - 1)]
    neglected_BV = (p_BV - q_BV).clamp(min=0)
    # Rounding can leave nothing of two distributions that are almost equal.
    is_rejected_B = (accepted_B < limit_B) & (neglected_BV.sum(dim=-1) > 0)
    weights_BV = torch.where(is_rejected_B[:, None], neglected_BV, p_BV)
    return Verified(accepted_B, draw(weights_BV, uniform_BS[:, -1]))
