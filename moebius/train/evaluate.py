"""Loss on the held-out text, in nats per token and bits per byte."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from moebius.config import Config
from moebius.data import Corpus, evaluation_windows, on_device
from moebius.data.batches import PADDING, EvaluationBatch
from moebius.hardware.precision import autocast
from moebius.model.transformer import Transformer, lookahead
from moebius.observe.metrics import SourceMetrics
from moebius.parallel.ranks import num_ranks, own_rank, sum_over_ranks

Observer = Callable[[EvaluationBatch, Tensor], None]
"""Function that gets each batch of an evaluation and its nats_BS, the loss of each next token."""


class Evaluation(NamedTuple):
    """The cross-entropy of the next token on held-out text.

    With several sources, the figures are means over the sources by weight: those of text that is
    mixed like the training text.
    """

    loss: float
    """Nats per token."""
    bits_per_byte: float | None
    """Bits per byte of the text that the predicted tokens stand for, which are comparable between
    different tokenizers. None if the tokenizer loses text, whose bits would not be counted."""
    tokens: int
    """Number of tokens that were predicted, each of them once."""
    num_bytes: int = 0
    """Number of bytes of UTF-8 text that these tokens stand for."""
    by_source: Mapping[str, SourceMetrics] = MappingProxyType({})
    """The figures of each source, by the source's name; empty for a single source."""

    def lines(self) -> list[str]:
        """Return the figures as lines for the user."""
        size = f"({self.tokens:,} held-out tokens, {self.num_bytes:,} bytes)"
        lines = [f"validation loss {_figures(self.loss, self.bits_per_byte)} {size}"]
        for name, source in self.by_source.items():
            figures = _figures(source.loss, source.bpb)
            lines.append(f"  {name}, {source.share:.0%}: {figures} ({source.tokens:,} tokens)")
        return lines


@torch.no_grad()
def evaluate(
    model: Transformer,
    corpus: Corpus,
    config: Config,
    device: torch.device,
    stopped: Callable[[], bool] = lambda: False,
    observe: Observer = lambda batch, nats_BS: None,
) -> Evaluation | None:
    """Return the loss on a sample of at most about `train.eval_tokens` tokens of held-out text.

    The sample is spread over all of the text, and is the same whatever the micro-batch.
    `stopped` is called before each batch; None is returned once it returns true. `observe` is
    called after each batch. Several processes share each batch, and all get the result.
    """
    was_training = model.training
    model.eval()
    S, ahead = config.train.seq_len, lookahead(config.model)
    batch_size = config.train.micro_batch_size or -(-config.train.batch_size // num_ranks())
    rows = slice(batch_size * own_rank(), batch_size * (own_rank() + 1))  # of this process
    batches = evaluation_windows(
        corpus.val, S, ahead, config.train.eval_tokens, batch_size * num_ranks()
    )
    num_sources = len(corpus.val.parts)
    nats = torch.zeros(num_sources, device=device, dtype=torch.float64)
    tokens, num_bytes = [0] * num_sources, [0] * num_sources
    for source, windows, starts in batches:
        if stopped():
            break
        window = windows[rows]
        batch = EvaluationBatch(source, window, starts[rows])
        with autocast(config.train, device):
            nats_BS = model.token_losses(on_device(window, device), corpus.separator)
        nats[source] += nats_BS.sum(dtype=torch.float64)
        tokens[source] += int((window[:, 1 : S + 1] != PADDING).sum())
        for row in window[:, : S + 1]:
            num_bytes[source] += corpus.text_bytes.count(row[row != PADDING])
        observe(batch, nats_BS)
    model.train(was_training)
    if stopped():
        return None
    counts = sum_over_ranks(torch.tensor([tokens, num_bytes], device=device))
    return _evaluation(corpus, sum_over_ranks(nats).tolist(), *counts.tolist())


def _evaluation(
    corpus: Corpus, nats: list[float], tokens: list[int], num_bytes: list[int]
) -> Evaluation:
    """Return the evaluation from each source's nats, predicted tokens and bytes."""
    weights = [part.weight for part in corpus.val.parts]
    sum_of_weights = sum(weights)
    shares = [weight / sum_of_weights for weight in weights]
    losses = [total / count for total, count in zip(nats, tokens, strict=True)]
    bytes_per_token = [size / count for size, count in zip(num_bytes, tokens, strict=True)]
    is_lossy = bool(corpus.lossy)

    def bits_per_byte(loss: float, per_token: float) -> float | None:
        return None if is_lossy or not per_token else loss / math.log(2) / per_token

    by_source = {
        name: SourceMetrics(share=share, loss=loss, bpb=bits_per_byte(loss, size), tokens=count)
        for name, share, loss, size, count in zip(
            corpus.names, shares, losses, bytes_per_token, tokens, strict=True
        )
    }
    loss = _weighted(shares, losses)
    return Evaluation(
        loss=loss,
        bits_per_byte=bits_per_byte(loss, _weighted(shares, bytes_per_token)),
        tokens=sum(tokens),
        num_bytes=sum(num_bytes),
        by_source=by_source if len(by_source) > 1 else {},
    )


def _weighted(shares: Sequence[float], values: Sequence[float]) -> float:
    return sum(share * value for share, value in zip(shares, values, strict=True))


def _figures(loss: float, bits_per_byte: float | None) -> str:
    if bits_per_byte is None:
        return f"{loss:.4f} nats per token, no bits per byte (the tokenizer loses text)"
    return f"{loss:.4f} nats per token, {bits_per_byte:.4f} bits per byte"
