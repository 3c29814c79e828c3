"""The loss on held-out text, compared with the definition of cross-entropy."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from moebius.data import prepare
from moebius.model.transformer import seeded
from moebius.train.evaluate import evaluate

S = 32
"""Length of a sequence in the `small` configuration."""


@pytest.mark.parametrize("masking", [True, False])
def test_bits_per_byte_by_hand(small, masking):
    config = replace(
        small,
        data=replace(small.data, document_masking=masking),
        model=replace(small.model, expert_dropout=0.5),
    )
    corpus = prepare(config.data, config.model.vocab_size)
    model = seeded(0, config.model)
    result = evaluate(model, corpus, config, torch.device("cpu"))
    assert result is not None
    assert model.training  # as it was before

    model.eval()
    tokens = torch.from_numpy(corpus.val.read(0, len(corpus.val)))
    nats = []
    for start in range(0, 60 * S, S):  # 15 batches of 4 sequences fit in 2000 tokens
        window_1L = tokens[start : start + S + 1][None]
        documents_1L = (window_1L == corpus.tokenizer.end_of_text).cumsum(dim=1)
        documents_1S = documents_1L[:, :S] if masking else None
        with torch.no_grad():
            logits_1SV = model(window_1L[:, :S], documents_1S).logits_BSV.double()
        nats.append(torch.nn.functional.cross_entropy(logits_1SV[0], window_1L[0, 1:]).item())
    assert result.tokens == S * len(nats)
    assert result.loss == pytest.approx(np.mean(nats), rel=1e-5)
    bytes_per_token = corpus.val.num_bytes / len(corpus.val)
    bits = np.mean(nats) / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / bytes_per_token, rel=1e-5)


def test_it_ends_early_when_the_run_is_stopped(small):
    corpus = prepare(small.data, small.model.vocab_size, report=lambda line: None)
    model = seeded(0, small.model)
    is_stopped = iter([False, False, True])  # asked before each batch
    stopped = partial(next, is_stopped, True)
    assert evaluate(model, corpus, small, torch.device("cpu"), stopped) is None
    assert model.training
