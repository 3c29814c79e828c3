"""Loss on the held-out text, in nats per token and bits per byte."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from moebius.config import Config
from moebius.data import Corpus, evaluation_windows, on_device
from moebius.hardware.precision import autocast
from moebius.model.transformer import Transformer, lookahead


class Evaluation(NamedTuple):
    """The cross-entropy of the next token on held-out text."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """Bits per byte of the raw text, which are comparable between different tokenizers."""
    tokens: int
    """Number of tokens that were predicted."""


@torch.no_grad()
def evaluate(
    model: Transformer,
    corpus: Corpus,
    config: Config,
    device: torch.device,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Return the loss on the first `train.eval_tokens` tokens of the held-out text.

    `stopped` is called before each batch; None is returned once it returns true.
    """
    was_training = model.training
    model.eval()
    ahead = lookahead(config.model)
    batch_size = config.train.micro_batch_size or config.train.batch_size
    windows = evaluation_windows(
        corpus.val, config.train.seq_len, ahead, config.train.eval_tokens, batch_size
    )
    total = torch.zeros((), device=device, dtype=torch.float64)
    tokens = 0
    for window in windows:
        if stopped():
            break
        tokens_BL = on_device(window, device)
        num_predicted = tokens_BL.shape[0] * (tokens_BL.shape[1] - ahead)
        with autocast(config.train, device):
            loss = model.loss(tokens_BL, corpus.separator).next_token
        total += loss.double() * num_predicted
        tokens += num_predicted
    model.train(was_training)
    if stopped():
        return None
    nats = total.item() / tokens
    return Evaluation(nats, nats / math.log(2) / corpus.val_bytes_per_token, tokens)
