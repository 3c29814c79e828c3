"""Turn logits into the probabilities of the next token, and draw from them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moebius.errors import ConfigError

GREEDY_BELOW = 1e-6
"""Temperature below which the likeliest token is taken. Float32 logits of the usual size differ by
more than this, so that only equal ones would be left to draw from."""
UNIFORM_ABOVE = 1e30
"""Highest temperature that is used. All tokens are equally likely long before it."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Raises ConfigError for a value that is not allowed.

    The filters apply one after the other, each to what the one before it has left.
    """

    temperature: float = 0.8
    """Divides the logits. 0, or almost 0, takes the likeliest token."""
    top_k: int = 0
    """Number of likeliest tokens that are left. 0 means all."""
    top_p: float = 1.0
    """The likeliest tokens are left until their probabilities sum to this share (nucleus sampling,
    Holtzman et al. 2019, arXiv 1904.09751)."""
    min_p: float = 0.0
    """Tokens are left that are at least this share as likely as the likeliest one (Nguyen et al.
    2024, arXiv 2407.01082)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature={self.temperature}: must be a finite number, at least 0"
            )
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k}: must be at least 0, which leaves all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={self.min_p}: must be from 0 to 1")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @property
    def has_filters(self) -> bool:
        """Whether some tokens may be left out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities of the next token; the last dimension is the vocabulary.

    They have a sum of 1. The highest logit of each row has to be finite.
    """
    if sampling.is_greedy:
        likeliest = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, likeliest, 1.0)
    # Without the subtraction, a low temperature would make logits infinite.
    highest = logits.amax(dim=-1, keepdim=True)
    probs = ((logits - highest) / min(sampling.temperature, UNIFORM_ABOVE)).softmax(dim=-1)
    return _filtered(probs, sampling) if sampling.has_filters else probs


def _filtered(probs: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities of the tokens that the filters leave, and 0 for the others."""
    # A stable sort, so that equal tokens are told apart by their ids on every machine.
    sorted_probs, token = probs.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        sorted_probs[..., sampling.top_k :] = 0.0
    if sampling.top_p < 1:
        share = sorted_probs / sorted_probs.sum(dim=-1, keepdim=True)
        before = share.cumsum(dim=-1) - share
        sorted_probs = torch.where(before < sampling.top_p, sorted_probs, 0.0)
    if sampling.min_p:
        lowest = sampling.min_p * sorted_probs[..., :1]
        sorted_probs = torch.where(sorted_probs >= lowest, sorted_probs, 0.0)
    sorted_probs = sorted_probs / sorted_probs.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter_(-1, token, sorted_probs)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return a token id for each row of weights, whose last dimension is the vocabulary.

    A token is drawn with its weight divided by the row's sum, and never if its weight is 0.
    uniform: one number for each row, at least 0 and at most 1 - 2**-32. It alone decides which
    token it is, so the same numbers give the same tokens on every device.
    """
    # float32 cannot add the weight of a rare token to the sum of the others.
    running = weights.double().cumsum(dim=-1)
    target = uniform.double()[..., None] * running[..., -1:]
    token = torch.searchsorted(running, target, right=True)[..., 0]
    # Weights that are not finite, which the caller reports, must not become an id that is none.
    return token.clamp(max=weights.shape[-1] - 1)
