"""Batches: a pure function of seed, step and corpus that visits every window once an epoch."""

from pathlib import Path

import numpy as np
import pytest

from moebius.data.batches import Batches, evaluation_windows
from moebius.data.shards import TokenStream
from moebius.errors import DataError

FIXED_STARTS = [32, 48, 16, 56]  # a change of these would break every run that is resumed


def stream(length: int) -> TokenStream:
    """Tokens that are their own positions."""
    return TokenStream({Path("shard"): np.arange(length, dtype="<u4")}, vocab_size=10**6, num_documents=1, num_bytes=length)


@pytest.mark.parametrize("lookahead", [1, 4])
def test_shape_and_contents(lookahead):
    batches = Batches(stream(1000), seq_len=16, batch_size=3, seed=0, lookahead=lookahead)
    tokens = batches.at(0)
    assert tokens.shape == (3, 16 + lookahead)
    assert tokens.dtype == np.int64
    assert (np.diff(tokens, axis=1) == 1).all()
    assert (tokens[:, 0] % 16 == 0).all()


def test_every_window_once_an_epoch_also_where_a_batch_straddles_two():
    batches = Batches(stream(10 * 8 + 1), seq_len=8, batch_size=4, seed=3)
    assert batches.num_windows == 10
    starts = np.concatenate([batches.at(step)[:, 0] for step in range(25)]).reshape(10, 10)  # 10 epochs in 25 steps
    for epoch in starts:
        assert sorted(epoch.tolist()) == list(range(0, 80, 8))
    assert len({tuple(epoch) for epoch in starts.tolist()}) > 5


def test_at_depends_on_nothing_but_seed_and_step():
    make = lambda seed: Batches(stream(500), seq_len=8, batch_size=5, seed=seed)  # noqa: E731
    ahead = [make(1).at(step) for step in range(40)]
    used = make(1)
    np.random.seed(99)  # noqa: NPY002  (the global state is what must not matter)
    for step in (39, 0, 12, 13, 12, 25):
        assert (used.at(step) == ahead[step]).all()
    assert (make(2).at(0) != ahead[0]).any()


def test_the_order_is_fixed_for_good():
    starts = Batches(stream(81), seq_len=8, batch_size=4, seed=0).at(0)[:, 0]
    assert starts.tolist() == FIXED_STARTS


def test_the_permutation_is_drawn_once_an_epoch(monkeypatch):
    drawn = []
    original = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or original(seed))
    batches = Batches(stream(81), seq_len=8, batch_size=4, seed=7)
    for step in range(5):
        batches.at(step)
    assert drawn == [[7, 0], [7, 1]]


def test_a_corpus_too_small_for_a_batch():
    assert Batches(stream(33), seq_len=8, batch_size=4, seed=0).at(0).shape == (4, 9)
    for length in (32, 1, 0):
        with pytest.raises(
            DataError, match=f"the corpus has {length} training tokens, too few for one batch of 4 x 8"
        ) as caught:
            Batches(stream(length), seq_len=8, batch_size=4, seed=0)
        assert "it takes 33" in str(caught.value)
        assert caught.value.exit_code == 3


def test_evaluation_reads_whole_batches_in_order():
    windows = list(evaluation_windows(stream(60), seq_len=8, lookahead=4, limit_tokens=10**6, batch_size=3))
    assert [window.shape for window in windows] == [(3, 12), (3, 12)]
    assert np.concatenate(windows)[:, 0].tolist() == [0, 8, 16, 24, 32, 40]


def test_evaluation_keeps_to_its_limit_but_reads_one_window_at_least():
    count = lambda limit: sum(len(w) for w in evaluation_windows(stream(100), 8, 1, limit, 3))  # noqa: E731
    assert (count(50), count(47), count(40), count(8), count(1)) == (6, 3, 3, 1, 1)


def test_evaluation_of_a_short_text_is_one_short_window():
    (window,) = evaluation_windows(stream(5), seq_len=8, lookahead=1, limit_tokens=100, batch_size=3)
    assert window.tolist() == [[0, 1, 2, 3, 4]]
    with pytest.raises(DataError, match="the held-out text has 4 tokens, too few to evaluate"):
        next(evaluation_windows(stream(4), seq_len=8, lookahead=4, limit_tokens=100, batch_size=3))
