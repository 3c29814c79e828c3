"""Loss on the held-out text, in nats per token and bits per byte."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from moebius.config import Config
from moebius.data import Corpus, evaluation_windows
from moebius.model.transformer import Transformer, lookahead
from moebius.train.step import autocast


class Evaluation(NamedTuple):
    """Cross-entropy of the next token in nats, and in bits per byte of the raw text, which tokenizers cannot change."""

    loss: float
    bits_per_byte: float
    tokens: int


@torch.no_grad()
def evaluate(
    model: Transformer, corpus: Corpus, config: Config, device: torch.device, stopped: Callable[[], bool] = lambda: False
) -> Evaluation | None:
    """Read the held-out text in order, at most train.eval_tokens of it. None if `stopped` says so in between."""
    was_training = model.training
    model.eval()
    end_of_text = corpus.tokenizer.end_of_text if config.data.document_masking else None
    batch_size = config.train.micro_batch_size or config.train.batch_size
    total = torch.zeros((), device=device, dtype=torch.float64)
    tokens = 0
    windows = evaluation_windows(
        corpus.val, config.train.seq_len, lookahead(config.model), config.train.eval_tokens, batch_size
    )
    for window in windows:
        if stopped():
            break
        tokens_BL = torch.from_numpy(window).to(device)
        count = tokens_BL.shape[0] * (tokens_BL.shape[1] - lookahead(config.model))
        with autocast(config.train, device):
            total += model.loss(tokens_BL, end_of_text).next_token.double() * count
        tokens += count
    model.train(was_training)
    if stopped():
        return None
    loss = total.item() / tokens
    return Evaluation(loss, loss / math.log(2) / corpus.val_bytes_per_token, tokens)
