"""Evaluation against the definition."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moebius.data import prepare
from moebius.model.transformer import seeded
from moebius.train.evaluate import evaluate


@pytest.mark.parametrize("masking", [True, False])
def test_bits_per_byte_by_hand(small, masking):
    config = replace(small, data=replace(small.data, document_masking=masking), model=replace(small.model, expert_dropout=0.5))
    corpus = prepare(config.data, config.model.vocab_size)
    model = seeded(0, config.model)
    result = evaluate(model, corpus, config, torch.device("cpu"))
    assert result is not None and model.training  # as it was before

    model.eval()
    tokens = torch.from_numpy(corpus.val.read(0, len(corpus.val)))
    nats = []
    for start in range(0, 60 * 32, 32):  # 15 batches of 4 fit in 2000 tokens
        window = tokens[start : start + 33][None]
        documents = (window == corpus.tokenizer.end_of_text).cumsum(dim=1)[:, :32] if masking else None
        with torch.no_grad():
            logits = model(window[:, :32], documents).logits_BSV.double()
        nats.append(torch.nn.functional.cross_entropy(logits[0], window[0, 1:]).item())
    assert result.tokens == 32 * len(nats)
    assert result.loss == pytest.approx(np.mean(nats), rel=1e-5)
    bytes_per_token = corpus.val.num_bytes / len(corpus.val)
    assert result.bits_per_byte == pytest.approx(np.mean(nats) / math.log(2) / bytes_per_token, rel=1e-5)


def test_it_ends_early_when_told_to(small):
    corpus = prepare(small.data, small.model.vocab_size, report=lambda line: None)
    model = seeded(0, small.model)
    asked = iter([False, False, True])
    assert evaluate(model, corpus, small, torch.device("cpu"), lambda: next(asked, True)) is None
    assert model.training
