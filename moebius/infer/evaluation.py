"""Evaluate a model on held-out text: losses with confidence intervals, and what experts do."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from moebius.config import Config
from moebius.data import Corpus
from moebius.data.batches import EvaluationBatch
from moebius.errors import NumericError
from moebius.infer.document_losses import BYTES, NATS, TOKENS, DocumentLosses
from moebius.infer.expert_use import LayerUse, watching
from moebius.infer.interval import Interval, interval
from moebius.model.transformer import Transformer
from moebius.train.evaluate import evaluate


class Estimate(NamedTuple):
    """A figure with its confidence interval."""

    value: float
    interval: Interval | None
    """None if the text has too few documents to tell."""


@dataclass(frozen=True, kw_only=True)
class TextFigures:
    """The figures of one source's text, or of all sources by their weights."""

    share: float
    """Share in the figures of all sources."""
    tokens: int
    """Number of tokens that were predicted."""
    num_bytes: int
    """Number of bytes of UTF-8 text that they stand for."""
    documents: int
    """Number of documents that they are in."""
    loss: Estimate
    """Nats per token."""
    perplexity: Estimate
    """exp(loss)."""
    bits_per_byte: Estimate | None
    """None if the tokenizer loses text, whose bits would not be counted."""


@dataclass(frozen=True)
class HeldOut:
    """The result of an evaluation on text."""

    total: TextFigures
    """The figures of text that is mixed like the training text."""
    sources: dict[str, TextFigures]
    """The figures of each source by its name."""
    layers: list[LayerUse]
    """How the experts of each layer that has some were used."""


def held_out(model: Transformer, corpus: Corpus, config: Config, device: torch.device) -> HeldOut:
    """Return the figures of a sample of `train.eval_tokens` tokens of held-out text.

    The losses are those that `moebius.train.evaluate` gives. Raises NumericError if they are not
    finite, and DataError if the text is too short.
    """
    documents = DocumentLosses(corpus)
    with watching(model, len(corpus.names)) as use:

        def observe(batch: EvaluationBatch, nats_BS: Tensor) -> None:
            documents.add(batch, nats_BS)
            use.add(batch, nats_BS)

        evaluation = evaluate(model, corpus, config, device, observe=observe)
    assert evaluation is not None  # nothing stops it
    if not math.isfinite(evaluation.loss):
        raise NumericError(
            f"the loss is {evaluation.loss}; the model's weights are not finite, or too large"
        )
    sums = [documents.sums(source) for source in range(len(corpus.names))]
    weights = [part.weight for part in corpus.val.parts]
    shares = [weight / sum(weights) for weight in weights]
    total = _figures(
        sums, shares, 1.0, evaluation.loss, evaluation.bits_per_byte, evaluation.num_bytes
    )
    sources = {}
    for name, own, share in zip(corpus.names, sums, shares, strict=True):
        figures = evaluation.by_source.get(name)
        loss = figures.loss if figures else evaluation.loss
        bits_per_byte = figures.bpb if figures else evaluation.bits_per_byte
        num_bytes = round(own[:, BYTES].sum())
        sources[name] = _figures([own], [1.0], share, loss, bits_per_byte, num_bytes)
    return HeldOut(total, sources, use.layers())


def _figures(
    sums: list[np.ndarray],
    weights: list[float],
    share: float,
    loss: float,
    bits_per_byte: float | None,
    num_bytes: int,
) -> TextFigures:
    """Return the figures of sources that are mixed by weights, given each one's documents.

    The confidence intervals are those of the formulas in moebius/train/evaluate.py.
    """

    def mean_loss(sums_XPC: np.ndarray) -> np.ndarray:
        return (sums_XPC[..., NATS] / sums_XPC[..., TOKENS]) @ np.array(weights)

    def bits(sums_XPC: np.ndarray) -> np.ndarray:
        bytes_per_token = (sums_XPC[..., BYTES] / sums_XPC[..., TOKENS]) @ np.array(weights)
        return mean_loss(sums_XPC) / math.log(2) / bytes_per_token

    around_loss = interval(sums, mean_loss)
    return TextFigures(
        share=share,
        tokens=round(sum(part[:, TOKENS].sum() for part in sums)),
        num_bytes=num_bytes,
        documents=sum(map(len, sums)),
        loss=Estimate(loss, around_loss),
        perplexity=Estimate(
            _exp(loss), around_loss and Interval(_exp(around_loss.low), _exp(around_loss.high))
        ),
        bits_per_byte=(
            None if bits_per_byte is None else Estimate(bits_per_byte, interval(sums, bits))
        ),
    )


def _exp(value: float) -> float:
    """Return exp(value), or infinity where a float cannot hold it."""
    return math.exp(value) if value < 700 else math.inf
