"""The figures of an evaluation are those of training."""

import math
from dataclasses import replace

import pytest
import torch

from moebius.data import prepare
from moebius.errors import NumericError
from moebius.infer.evaluation import held_out
from moebius.model.transformer import seeded
from moebius.train.evaluate import evaluate
from tests.train.test_evaluate import two_languages

CPU = torch.device("cpu")


def test_values_are_those_of_training_and_lie_in_their_intervals(small, tmp_path):
    source = ",".join(map(str, two_languages(tmp_path)))
    data = replace(small.data, source=source, weights=(3, 1), val_fraction=0.5)
    config = replace(small, data=data, train=replace(small.train, eval_tokens=4000))
    corpus = prepare(data, config.model.vocab_size)
    model = seeded(0, config.model).eval()
    result = held_out(model, corpus, config, CPU)
    expected = evaluate(model, corpus, config, CPU)
    assert expected is not None
    total = result.total
    assert (total.loss.value, total.tokens, total.num_bytes) == (
        expected.loss, expected.tokens, expected.num_bytes,
    )  # fmt: skip
    assert total.perplexity.value == math.exp(expected.loss) and total.share == 1
    assert total.bits_per_byte and total.bits_per_byte.value == expected.bits_per_byte
    assert list(result.sources) == list(expected.by_source)
    for figures, known in zip(result.sources.values(), expected.by_source.values(), strict=True):
        assert (figures.loss.value, figures.share, figures.tokens) == (
            known.loss, known.share, known.tokens,
        )  # fmt: skip
        assert figures.bits_per_byte and figures.bits_per_byte.value == known.bpb
    for figures in (total, *result.sources.values()):
        for estimate in (figures.loss, figures.perplexity, figures.bits_per_byte):
            assert estimate and estimate.interval
            low, high = estimate.interval
            assert low < estimate.value < high
            # The interval is that of this figure, not just any around it.
            middle = (low + high) / 2
            assert estimate is figures.perplexity or middle == pytest.approx(estimate.value)
        assert figures.loss.interval and figures.perplexity.interval
        assert figures.perplexity.interval.low == math.exp(figures.loss.interval.low)
    parts = result.sources.values()
    assert total.documents == sum(figures.documents for figures in parts)


def test_a_tokenizer_that_loses_text_and_weights_that_are_broken(small):
    corpus = replace(prepare(small.data, small.model.vocab_size), lossy="'A' becomes 'a'")
    model = seeded(0, small.model).eval()
    result = held_out(model, corpus, small, CPU)
    assert result.total.bits_per_byte is None
    assert all(figures.bits_per_byte is None for figures in result.sources.values())
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(NumericError, match="the loss is nan"):
        held_out(model, corpus, small, CPU)
