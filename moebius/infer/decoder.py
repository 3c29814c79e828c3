"""Decoders, which say how texts go on: the interface, and the readable reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from moebius.errors import NumericError
from moebius.infer.sampling import Sampling, draw, probabilities
from moebius.infer.window import window_start


@dataclass
class Writing:
    """A text that is being written."""

    tokens: list[int]
    """The tokens up to now: the end of text, which every document begins with, the prompt's, and
    those that were written."""
    seed: Sequence[int]
    """Numbers that the text's random numbers depend on, and nothing else."""
    is_done: bool = False
    """Whether no more tokens are wanted."""
    _generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        # A generator for each text, on the host: the text then depends neither on those beside it
        # nor on the device.
        self._generator = np.random.default_rng(list(self.seed))

    def uniform(self, count: int) -> list[float]:
        """Return independent random numbers, at least 0 and at most 1 - 2**-32."""
        return (self._generator.integers(2**32, size=count) / 2**32).tolist()


class Decoder(Protocol):
    """Finds the next tokens of several texts."""

    def advance(self, texts: Sequence[Writing]) -> list[list[int]]:
        """Return the next tokens of each text: at least one, or none for a text that is done.

        The caller appends them to the texts before the next call, and may end a text at any of
        them. Raises NumericError if the model's logits are not finite.
        """
        ...


class Recomputing:
    """The reference: reads a whole text again for every token, with the model's forward pass."""

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        device: torch.device,
        num_ids: int,
        context: int,
        sampling: Sampling,
    ):
        """Decode with `model(tokens_BS).logits_BSV`.

        num_ids: number of the tokenizer's ids. The further rows of a padded vocabulary stand for
        no token.
        context: the largest number of tokens that the model reads at once.
        """
        self._model = model
        self._device = device
        self._num_ids = num_ids
        self._context = context
        self._sampling = sampling

    @torch.no_grad()
    def advance(self, texts: Sequence[Writing]) -> list[list[int]]:
        """Return the next token of each text that is not done."""
        return [[] if text.is_done else [self._next(text)] for text in texts]

    def _next(self, text: Writing) -> int:
        start = window_start(len(text.tokens), self._context)
        window_1S = torch.tensor([text.tokens[start:]], device=self._device)
        logits_1V = self._model(window_1S).logits_BSV[:, -1].float()[:, : self._num_ids]
        check_highest(float(logits_1V.amax()))
        uniform_1 = torch.tensor(text.uniform(1), device=self._device, dtype=torch.float64)
        return int(draw(probabilities(logits_1V, self._sampling), uniform_1))


def check_highest(logit: float) -> None:
    """Raise NumericError if the highest logit of a token is not finite."""
    if not np.isfinite(logit):
        raise NumericError(
            f"the model's highest logit is {logit}: its weights are damaged, or too "
            "large for this dtype; an older checkpoint of the run may still be good"
        )
