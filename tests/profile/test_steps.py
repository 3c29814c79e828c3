"""Tests of a model whose steps are timed: which text it trains on, and that it learns."""

from dataclasses import replace

import pytest
import torch

from moebius.data import prepare
from moebius.profile.steps import Steps, feed_of

CPU = torch.device("cpu")


def test_the_text_is_the_runs_own_where_it_has_been_prepared(small):
    feed, text, notes = feed_of(small, CPU)
    assert not notes and text.startswith("random") and small.data.source in text
    assert feed.at(0).shape == (4, 33) and feed.at(0).max() < small.model.vocab_size
    corpus = prepare(small.data, small.model.vocab_size)
    feed, text, notes = feed_of(small, CPU)
    assert (
        text == small.data.source and notes == corpus.notes and feed.separator == corpus.separator
    )
    start = feed.batches.stream.read(0, 9).tolist()
    assert start == corpus.train.read(0, 9).tolist()


@pytest.mark.parametrize("masking", [True, False])
def test_random_documents_are_kept_apart_where_the_configuration_says_so(small, masking):
    config = replace(small, data=replace(small.data, document_masking=masking))
    feed, *_ = feed_of(config, CPU)
    assert feed.separator == (0 if masking else None)


def test_a_text_that_cannot_be_used_is_not_called_unprepared(small):
    prepare(small.data, small.model.vocab_size)
    long = replace(small, train=replace(small.train, seq_len=10**6))
    _, text, notes = feed_of(long, CPU)
    assert text.startswith("random") and "too few for one batch" in text and not notes
    gone = replace(small, data=replace(small.data, source=f"{small.data.source}.gone"))
    _, text, _ = feed_of(gone, CPU)
    assert "no such file" in text and "has not been prepared" not in text


def test_steps_train_the_model(small):
    config = replace(small, train=replace(small.train, micro_batch_size=2))
    steps = Steps(config, CPU)
    assert steps.micro_batch == 2 and steps.state.step == 3
    before = steps.state.model.lm_head.weight.detach().clone()
    assert steps.run(2) > 0
    assert (steps.state.step, steps.state.sequences) == (5, 20)
    assert not torch.equal(steps.state.model.lm_head.weight, before)
    assert steps.choices[0].startswith("expert backend: ")
