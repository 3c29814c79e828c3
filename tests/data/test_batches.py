"""A batch is a pure function of seed, step and corpus, and an epoch visits every window once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moebius.config import DataConfig
from moebius.data import prepare
from moebius.data.batches import PADDING, Batches, Stretch, evaluation_windows
from moebius.data.stream import MappedShard, TokenStream
from moebius.errors import ConfigError, DataError
from moebius.model.loss import IGNORED

# If these changed, every resumed run would get different batches.
FIXED_STARTS = [32, 48, 64, 72]


def stream(length: int) -> TokenStream:
    """Return a stream whose tokens are their own positions."""
    shard = MappedShard(Path("shard"), np.arange(length, dtype="<u4"))
    return TokenStream([shard], vocab_size=10**6, num_documents=1, num_bytes=length)


def mixed_stream() -> TokenStream:
    """Return two sources of 10 and 25 windows of 8; the first has twice the second's weight."""
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


def test_every_window_comes_once_in_an_epoch_even_if_a_batch_spans_two_epochs():
    batches = Batches(stream(10 * 8 + 1), seq_len=8, batch_size=4, seed=3)
    assert batches.num_windows == 10
    starts = np.concatenate([batches.at(4 * step)[:, 0] for step in range(25)])
    epochs = starts.reshape(10, 10)  # 10 epochs in 25 steps
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(0, 80, 8))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 5


def test_at_depends_on_nothing_but_seed_and_first_sequence():
    def new_batches(seed: int) -> Batches:
        return Batches(stream(500), seq_len=8, batch_size=5, seed=seed)

    expected = [new_batches(1).at(5 * step) for step in range(40)]
    batches = new_batches(1)
    np.random.seed(99)  # noqa: NPY002  (the global state must not matter)
    for step in (39, 0, 12, 13, 12, 25):
        assert (batches.at(5 * step) == expected[step]).all()
    assert (new_batches(2).at(0) != expected[0]).any()


def test_a_stretch_goes_on_in_each_source_whatever_the_mixture_was():
    """Each source visits its windows in the same order as in a run with one mixture."""

    def in_source(rows: np.ndarray, source: int) -> list[int]:
        return [start for start in rows[:, 0].tolist() if (start >= 81) == source]

    def starts(batches: Batches, first: int, count: int) -> np.ndarray:
        return np.concatenate([batches.at(first + n) for n in range(count)])

    alone = Batches(mixed_stream(), seq_len=8, batch_size=1, seed=2)
    order = [in_source(starts(alone, 0, 90), source) for source in (0, 1)]
    first = Batches(mixed_stream(), seq_len=8, batch_size=1, seed=2)
    rows = [starts(first, 0, 7)]
    second = first.following(7, 8, (1.0, 3.0))
    assert second == Stretch(8, (1.0, 3.0), 7, (5, 2))
    third = Batches(mixed_stream(), 8, 1, 2, 1, second).following(20, 8, (0.0, 1.0))
    rows.append(starts(Batches(mixed_stream(), 8, 1, 2, 1, second), 7, 13))
    rows.append(starts(Batches(mixed_stream(), 8, 1, 2, 1, third), 20, 8))
    read = np.concatenate(rows)
    for source in (0, 1):
        own = in_source(read, source)
        assert own == order[source][: len(own)] and own


def test_another_length_begins_the_next_epoch_of_the_sources_that_were_read():
    first = Batches(mixed_stream(), 8, 1, 2, 1, Stretch(8, (1.0, 0.0)))
    following = first.following(3, 16, (1.0, 1.0))
    assert following == Stretch(16, (1.0, 1.0), 3, (5, 0))  # 5 windows of 16 are an epoch
    rows = Batches(mixed_stream(), 16, 1, 2, 1, following)
    starts = [int(rows.at(3 + n)[0, 0]) for n in range(10)]
    assert sorted(start for start in starts if start < 81) == [0, 16, 32, 48, 64]
    again = rows.following(13, 8, (1.0, 1.0))
    assert again.taken == (20, 25)  # two epochs of 10, one of 25


def test_a_source_that_a_stretch_does_not_read_may_be_too_short():
    short = TokenStream.joined([stream(81), stream(5)], (1, 1))
    with pytest.raises(DataError, match="source 2"):
        Batches(short, 8, 1, 0)
    rows = Batches(short, 8, 1, 0, 1, Stretch(8, (1.0, 0.0))).at(0)
    assert rows.shape == (1, 9)


def test_the_order_never_changes():
    starts = Batches(stream(81), seq_len=8, batch_size=4, seed=0).at(0)[:, 0]
    assert starts.tolist() == FIXED_STARTS


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 6])
def test_the_rows_of_all_ranks_are_the_global_batch_for_any_world_size(world_size):
    def new_batches() -> Batches:
        return Batches(mixed_stream(), seq_len=8, batch_size=6, seed=5)

    global_batches = new_batches()
    batches_of_ranks = [new_batches() for _ in range(world_size)]
    for step in (7, 0, 31, 8):  # by step 31 batches have spanned two epochs
        rows = [
            batches.at(6 * step, rank, world_size) for rank, batches in enumerate(batches_of_ranks)
        ]
        few = 6 // world_size
        assert {len(rank_rows) for rank_rows in rows} <= {few, few + bool(6 % world_size)}
        assert (np.concatenate(rows) == global_batches.at(6 * step)).all()


def test_a_batch_with_fewer_sequences_than_processes_is_an_error():
    with pytest.raises(
        ConfigError,
        match=r"train\.batch_size=6: must be at least the number of processes \(7\)",
    ) as caught:
        Batches(stream(500), seq_len=8, batch_size=6, seed=0).at(0, 1, 7)
    assert caught.value.exit_code == 2


READER = """
import sys
import numpy as np
from pathlib import Path
from moebius.data import Batches, open_split
folder, out, rank, world_size, first, last = sys.argv[1:]
batches = Batches(open_split(Path(folder), "train"), seq_len=50, batch_size=4, seed=1)
steps = range(int(first), int(last))
rows = [batches.at(4 * step, int(rank), int(world_size)) for step in steps]
np.save(out, np.stack(rows))
"""


def test_a_run_restarted_with_one_two_four_and_one_processes_reads_the_same(tmp_path):
    """The restarts are at odd steps, in the middle of documents and in later epochs."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{n} " * (n % 90)}) + "\n" for n in range(100)))
    corpus = prepare(
        DataConfig(
            source=str(text), tokenizer="bytes", cache=str(tmp_path / "cache"), val_fraction=0.1
        ),
        257,
    )
    batches = Batches(corpus.train, seq_len=50, batch_size=4, seed=1)
    batches_read, first = [], 0
    for world_size, last in ((1, 7), (2, 36), (4, 61), (1, 120)):
        files = [tmp_path / f"{first}-{rank}.npy" for rank in range(world_size)]
        processes = []
        for rank, file in enumerate(files):
            arguments = map(str, (corpus.folder, file, rank, world_size, first, last))
            processes.append(subprocess.Popen([sys.executable, "-c", READER, *arguments]))
        assert [process.wait(60) for process in processes] == [0] * world_size
        batches_read.append(np.concatenate([np.load(file) for file in files], axis=1))
        first = last
    assert batches.num_windows * 2 < 120 * 4  # several epochs
    expected = np.stack([batches.at(4 * step) for step in range(120)])
    assert (np.concatenate(batches_read) == expected).all()


def test_the_sequences_do_not_depend_on_the_size_of_the_batches():
    """Batches of 6, 1, 3 and 4 sequences, one after another, are those of 14 batches of 1."""
    one_by_one = Batches(mixed_stream(), seq_len=8, batch_size=1, seed=2)
    expected = np.concatenate([one_by_one.at(sequence) for sequence in range(31, 45)])
    rows, first = [], 31
    for size in (6, 1, 3, 4):
        rows.append(Batches(mixed_stream(), seq_len=8, batch_size=size, seed=2).at(first))
        first += size
    assert (np.concatenate(rows) == expected).all()


def test_every_source_has_its_share_and_epochs_of_its_own():
    batches = Batches(mixed_stream(), seq_len=8, batch_size=6, seed=2)  # 10 and 25 windows, 2 : 1
    starts = np.concatenate([batches.at(6 * step)[:, 0] for step in range(25)])
    small, large = starts[starts < 81], starts[starts >= 81]
    assert (len(small), len(large)) == (100, 50)
    for epoch in small.reshape(10, 10):
        assert sorted(epoch.tolist()) == list(range(0, 80, 8))
    for epoch in large.reshape(2, 25):
        assert sorted(epoch.tolist()) == list(range(81, 281, 8))


def test_a_source_too_small_for_a_window_is_an_error():
    short = TokenStream.joined([stream(500), stream(8)], (1, 1))
    with pytest.raises(
        DataError,
        match=r"source 2 of data\.source has 8 training tokens, too few for one sequence of 8",
    ):
        Batches(short, seq_len=8, batch_size=4, seed=0)


def test_a_corpus_too_small_for_a_batch_is_an_error():
    assert Batches(stream(33), seq_len=8, batch_size=4, seed=0).at(0).shape == (4, 9)
    for length in (32, 1, 0):
        with pytest.raises(
            DataError,
            match=f"the corpus has {length} training tokens, too few for one batch of 4 x 8",
        ) as caught:
            Batches(stream(length), seq_len=8, batch_size=4, seed=0)
        assert "which needs 33" in str(caught.value)
        assert caught.value.exit_code == 3


# the sample of the held-out text


def predicted(
    stream: TokenStream, seq_len: int, lookahead: int, limit_tokens: int, batch_size: int
) -> list[list[int]]:
    """Return the targets of each source's sample, in order, without padding.

    The tokens of the test's streams are their own positions, so these are positions, too.
    """
    targets: list[list[int]] = [[] for _ in stream.parts]
    shapes = set()
    for source, window, _ in evaluation_windows(
        stream, seq_len, lookahead, limit_tokens, batch_size
    ):
        shapes.add(window.shape)
        for row in window.tolist():
            kept = [token for token in row if token != PADDING]
            assert row == kept + [PADDING] * (len(row) - len(kept))
            assert kept == list(range(kept[0], kept[0] + len(kept))) if kept else True
            targets[source] += [token for token in row[1 : seq_len + 1] if token != PADDING]
    assert shapes == {(batch_size, seq_len + lookahead)}
    return targets


def test_padding_is_what_the_loss_ignores():
    assert PADDING == IGNORED


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("lookahead", [1, 4])
@pytest.mark.parametrize("length", [5, 8, 9, 10, 60, 65])
def test_evaluation_predicts_every_token_once(length, lookahead, batch_size):
    targets = predicted(stream(length), 8, lookahead, 10**6, batch_size)
    assert targets == [list(range(1, length))]


@pytest.mark.parametrize("seq_len", [8, 30])
@pytest.mark.parametrize("limit_tokens", [1, 30, 64, 200, 999, 1000])
def test_evaluation_keeps_to_its_limit_and_is_the_same_for_any_micro_batch(limit_tokens, seq_len):
    (first,) = predicted(stream(1000), seq_len, 1, limit_tokens, 1)
    assert len(first) == len(set(first))
    if limit_tokens < 999:
        assert limit_tokens - seq_len < len(first) <= max(seq_len, limit_tokens)
    else:
        assert first == list(range(1, 1000))
    for batch_size in (3, 4, 50):
        assert predicted(stream(1000), seq_len, 1, limit_tokens, batch_size) == [first]
        assert predicted(stream(1000), seq_len, 4, limit_tokens, batch_size) == [first]


@pytest.mark.parametrize("num_windows", [1, 2, 3, 7, 25, 90])
def test_a_sample_is_spread_evenly_over_the_text(num_windows):
    (targets,) = predicted(stream(801), 8, 1, 8 * num_windows, batch_size=4)
    starts, stretch = targets[::8], 800 / num_windows
    assert len(starts) == num_windows
    for number, start in enumerate(starts):
        assert (number + 0.5) * stretch - 8 < start - 1 <= (number + 0.5) * stretch


def test_each_source_has_its_part_of_the_sample():
    small, large = predicted(mixed_stream(), 8, 1, 96, batch_size=3)  # weights 2 and 1
    assert (len(small), len(large)) == (64, 32)
    assert max(small) < 81 <= min(large)


def test_a_source_that_is_too_short_for_its_part_is_read_once():
    small, large = predicted(mixed_stream(), 8, 1, 240, batch_size=3)
    assert small == list(range(1, 81)) and len(large) == 80
    small, large = predicted(mixed_stream(), 8, 1, 10**9, batch_size=3)
    assert (len(small), len(large)) == (80, 200)


def test_every_source_has_at_least_one_window():
    rare = TokenStream.joined([stream(500), stream(500), stream(3)], (1000, 1, 1))
    rare.shards[1].tokens += 500
    rare.shards[2].tokens += 1000
    assert [len(targets) for targets in predicted(rare, 8, 1, 80, 2)] == [72, 8, 2]


def test_text_too_short_to_evaluate_is_an_error():
    with pytest.raises(DataError, match="the held-out text has 4 tokens, too few to evaluate"):
        next(evaluation_windows(stream(4), seq_len=8, lookahead=4, limit_tokens=100, batch_size=3))
