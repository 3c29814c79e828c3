"""The loss of each document, compared with adding up single tokens by their place in the text."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from moebius.data import evaluation_windows, prepare
from moebius.infer.document_losses import BYTES, NATS, TOKENS, DocumentLosses


@pytest.fixture
def corpus(small, tmp_path):
    """Held-out documents from empty ones to those of many windows, in two sources."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(30):
            length = int(rng.choice([1, 5, 31, 32, 33, 64, 300]))
            (tmp_path / name / f"{number}.txt").write_text(f"{name}{number}é" + "x" * length)
    source = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    return prepare(replace(small.data, source=source, val_fraction=0.6), 257)


@pytest.mark.parametrize("limit", [10**6, 900, 200, 1])
@pytest.mark.parametrize(("S", "ahead", "batch_size"), [(32, 1, 4), (7, 4, 3)])
def test_every_predicted_token_counts_in_its_own_document(corpus, limit, S, ahead, batch_size):
    documents = DocumentLosses(corpus)
    expected: dict[int, dict[int, np.ndarray]] = {0: {}, 1: {}}
    everything = corpus.val.read(0, len(corpus.val))
    document_of = (everything == corpus.tokenizer.end_of_text).cumsum()
    rng = np.random.default_rng(1)
    for batch in evaluation_windows(corpus.val, S, ahead, limit, batch_size):
        nats_BS = rng.normal(size=(batch_size, S))
        documents.add(batch, torch.from_numpy(nats_BS))
        for row, start in enumerate(batch.starts):
            for place in range(min(S, corpus.val.parts[batch.source].stop - 1 - start)):
                own = expected[batch.source].setdefault(document_of[start + place], np.zeros(3))
                is_text = everything[start + place + 1] != corpus.tokenizer.end_of_text
                own += [1, nats_BS[row, place], is_text]
    for source in (0, 1):
        sums = documents.sums(source)
        assert sums == pytest.approx(np.stack(list(expected[source].values())), abs=1e-9)
        if limit == 10**6:
            part = corpus.val.parts[source]
            assert sums[:, TOKENS].sum() == part.stop - part.start - 1
            assert sums[:, BYTES].sum() == part.num_bytes
    assert np.isfinite(documents.sums(0)[:, NATS]).all()


def test_the_end_of_a_document_is_found_however_far_it_is(corpus, monkeypatch):
    monkeypatch.setattr("moebius.infer.document_losses.READ_AT_ONCE", 3)
    test_every_predicted_token_counts_in_its_own_document(corpus, 200, 7, 1, 2)
