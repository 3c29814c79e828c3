"""Batches: a pure function of seed, step and corpus that visits every window once an epoch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moebius.config import DataConfig
from moebius.data import prepare
from moebius.data.batches import Batches, evaluation_windows
from moebius.data.stream import MappedShard, TokenStream
from moebius.errors import ConfigError, DataError

FIXED_STARTS = [32, 48, 64, 72]  # a change of these would break every run that is resumed


def stream(length: int) -> TokenStream:
    """Tokens that are their own positions."""
    shard = MappedShard(Path("shard"), np.arange(length, dtype="<u4"))
    return TokenStream([shard], vocab_size=10**6, num_documents=1, num_bytes=length)


def mixed_stream() -> TokenStream:
    """Two sources of 10 and 25 windows of 8, the first with twice the second's weight."""
    joined = TokenStream.joined([stream(81), stream(201)], (2, 1))
    joined.shards[1].tokens += 81
    return joined


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


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_the_ranks_rows_are_the_global_batch_for_any_number_of_them(world):
    make = lambda: Batches(mixed_stream(), seq_len=8, batch_size=6, seed=5)  # noqa: E731
    whole = make()
    ranks = [make() for _ in range(world)]
    for step in (7, 0, 31, 8):  # 31: later epochs, with batches that straddle two
        rows = [batches.at(step, rank, world) for rank, batches in enumerate(ranks)]
        assert all(len(each) == 6 // world for each in rows)
        assert (np.concatenate(rows) == whole.at(step)).all()


def test_a_batch_that_does_not_divide():
    with pytest.raises(
        ConfigError, match=r"train\.batch_size=6: must be a multiple of the number of processes \(4\)"
    ) as caught:
        Batches(stream(500), seq_len=8, batch_size=6, seed=0).at(0, 1, 4)
    assert caught.value.exit_code == 2


READER = """
import sys
import numpy as np
from pathlib import Path
from moebius.data import Batches, open_split
folder, out, rank, world, first, last = sys.argv[1:]
batches = Batches(open_split(Path(folder), "train"), seq_len=50, batch_size=4, seed=1)
rows = [batches.at(step, int(rank), int(world)) for step in range(int(first), int(last))]
np.save(out, np.stack(rows))
"""


def test_one_two_four_and_one_processes_read_the_same(tmp_path):
    """Restarts at an odd step, in the middle of documents and in later epochs."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{n} " * (n % 90)}) + "\n" for n in range(100)))
    corpus = prepare(DataConfig(source=str(text), tokenizer="bytes", cache=str(tmp_path / "cache"), val_fraction=0.1), 257)
    whole = Batches(corpus.train, seq_len=50, batch_size=4, seed=1)
    found, first = [], 0
    for world, last in ((1, 7), (2, 36), (4, 61), (1, 120)):
        files = [tmp_path / f"{first}-{rank}.npy" for rank in range(world)]
        arguments = [
            [str(corpus.folder), str(file), str(rank), str(world), str(first), str(last)] for rank, file in enumerate(files)
        ]
        processes = [subprocess.Popen([sys.executable, "-c", READER, *each]) for each in arguments]
        assert [process.wait(60) for process in processes] == [0] * world
        found.append(np.concatenate([np.load(file) for file in files], axis=1))
        first = last
    assert whole.num_windows * 2 < 120 * 4  # several epochs
    assert (np.concatenate(found) == np.stack([whole.at(step) for step in range(120)])).all()


def test_every_source_has_its_share_and_epochs_of_its_own():
    batches = Batches(mixed_stream(), seq_len=8, batch_size=6, seed=2)  # 10 and 25 windows, 2 : 1
    starts = np.concatenate([batches.at(step)[:, 0] for step in range(25)])
    small, large = starts[starts < 81], starts[starts >= 81]
    assert (len(small), len(large)) == (100, 50)
    for epoch in small.reshape(10, 10):
        assert sorted(epoch.tolist()) == list(range(0, 80, 8))
    for epoch in large.reshape(2, 25):
        assert sorted(epoch.tolist()) == list(range(81, 281, 8))


def test_a_source_too_small_for_a_window():
    short = TokenStream.joined([stream(500), stream(8)], (1, 1))
    with pytest.raises(DataError, match=r"source 2 of data\.source has 8 training tokens, too few for one sequence of 8"):
        Batches(short, seq_len=8, batch_size=4, seed=0)


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


def test_evaluation_reads_the_sources_in_proportion_and_each_in_order():
    windows = np.concatenate(list(evaluation_windows(mixed_stream(), 8, 1, limit_tokens=240, batch_size=3)))
    starts = windows[:, 0]
    assert sorted(starts[starts < 81].tolist()) == sorted(8 * (n % 10) for n in range(20))  # the short one twice
    assert starts[starts >= 81].tolist() == [81 + 8 * n for n in range(10)]
    assert sum(map(len, evaluation_windows(mixed_stream(), 8, 1, 10**9, 1))) == 35


def test_evaluation_of_a_short_text_is_one_short_window():
    (window,) = evaluation_windows(stream(5), seq_len=8, lookahead=1, limit_tokens=100, batch_size=3)
    assert window.tolist() == [[0, 1, 2, 3, 4]]
    with pytest.raises(DataError, match="the held-out text has 4 tokens, too few to evaluate"):
        next(evaluation_windows(stream(4), seq_len=8, lookahead=4, limit_tokens=100, batch_size=3))
