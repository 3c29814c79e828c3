"""The probability that a model gives to the end of a text, for tasks with answers to choose from.

The sequences have different lengths. They are padded on the right, where no token sees the
padding, and the longest come first, so that those of a batch have similar lengths.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moebius.hardware.precision import wide
from moebius.infer.language_model import LanguageModel
from moebius.model.head import MOST_LOGITS

MOST_AT_ONCE = 2**13
"""Most tokens of a batch, with the padding."""


class Text(NamedTuple):
    """The tokens of a text, some of which are given and the others are scored."""

    tokens: Sequence[int]
    """The first one is the end-of-text token, with which every document begins."""
    num_given: int
    """Number of tokens at the beginning that are not scored; at least 1."""


class Score(NamedTuple):
    """How well a model predicts the scored tokens of a text."""

    log_probability: float
    """Natural logarithm of the probability of the scored tokens, given the others."""
    is_greedy: bool
    """Whether each scored token is the likeliest one in its place."""


class _Window(NamedTuple):
    """A part of a text that the model reads at once."""

    text: int
    start: int
    """Index of the first token that is read."""
    first: int
    """Index of the first token that is predicted."""
    stop: int
    """Index after the last token that is predicted."""

    @property
    def length(self) -> int:
        """Number of tokens that are read."""
        return self.stop - 1 - self.start


@torch.no_grad()
def scores(model: LanguageModel, texts: Sequence[Text]) -> list[Score]:
    """Return the score of each text.

    The model reads at most its context, and as much as fits into it before a scored token. If the
    scored tokens alone do not fit, they are predicted in several parts, each token once.
    """
    windows = [
        window
        for number, text in enumerate(texts)
        for window in _windows(number, text, model.context)
    ]
    windows.sort(key=lambda window: -window.length)
    totals, are_greedy = [0.0] * len(texts), [True] * len(texts)
    for batch in _batches(windows):
        nats, is_best = _predicted(model, texts, batch)
        sizes = [window.stop - window.first for window in batch]
        parts = zip(batch, nats.cpu().split(sizes), is_best.cpu().split(sizes), strict=True)
        for window, own_nats, own_is_best in parts:
            totals[window.text] -= own_nats.sum(dtype=torch.float64).item()
            are_greedy[window.text] &= bool(own_is_best.all())
    return [Score(*score) for score in zip(totals, are_greedy, strict=True)]


def _windows(number: int, text: Text, context: int) -> Iterator[_Window]:
    first, end = text.num_given, len(text.tokens)
    while first < end:
        stop = min(first + context, end)
        yield _Window(number, max(0, stop - 1 - context), first, stop)
        first = stop


def _batches(windows: Sequence[_Window]) -> Iterator[Sequence[_Window]]:
    """Yield the windows, which come by falling length, in batches of limited size."""
    first = 0
    while first < len(windows):
        size = max(1, MOST_AT_ONCE // windows[first].length)
        yield windows[first : first + size]
        first += size


def _predicted(
    model: LanguageModel, texts: Sequence[Text], batch: Sequence[_Window]
) -> tuple[Tensor, Tensor]:
    """Return nats_T, the loss of each predicted token, and whether it is the likeliest one."""
    device = model.model.embedding.weight.device
    tokens_BS = torch.zeros(len(batch), batch[0].length, dtype=torch.long)
    rows, places, targets = [], [], []
    for row, window in enumerate(batch):
        tokens = texts[window.text].tokens
        tokens_BS[row, : window.length] = torch.tensor(tokens[window.start : window.stop - 1])
        rows += [row] * (window.stop - window.first)
        places += range(window.first - 1 - window.start, window.stop - 1 - window.start)
        targets += tokens[window.first : window.stop]
    target_T = torch.tensor(targets, device=device)
    is_half = model.dtype != torch.float32
    with torch.autocast(device.type, model.dtype, enabled=is_half):
        hidden_BSD, _ = model.model.hidden(tokens_BS.to(device))
        hidden_TD = model.model.norm(hidden_BSD[rows, places])
        size = max(1, MOST_LOGITS // model.tokenizer.size)
        parts = []
        for part_TD, part_T in zip(hidden_TD.split(size), target_T.split(size), strict=True):
            # The further rows of a padded vocabulary stand for no token.
            logits_TV = wide(model.model.lm_head(part_TD)[:, : model.tokenizer.size])
            nats_T = torch.nn.functional.cross_entropy(logits_TV, part_T, reduction="none")
            parts.append((nats_T, logits_TV.argmax(dim=-1) == part_T))
    nats, is_best = zip(*parts, strict=True)
    return torch.cat(nats), torch.cat(is_best)
