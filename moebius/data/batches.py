"""Deterministic batches of training and evaluation windows.

A training batch is a pure function of the corpus, the seed and the number of its first sequence.
Any process can therefore read its rows of any batch at any time, and a restarted run sees the same
sequences, also with another batch size.
"""

from collections.abc import Iterator
from itertools import compress
from typing import NamedTuple

import numpy as np

from moebius.data.order import Mixture, shuffled
from moebius.data.stream import Part, TokenStream
from moebius.errors import ConfigError, DataError

PADDING = -100
"""Stands in for a token that is not there: `moebius.model.loss.IGNORED`, without torch."""


class Stretch(NamedTuple):
    """A part of a run in which the text is cut and mixed in one way."""

    seq_len: int
    """Tokens per sequence."""
    weights: tuple[float, ...]
    """The weight of each source."""
    first: int = 0
    """Number of its first sequence, counted from the start of the run."""
    taken: tuple[int, ...] = ()
    """Number of windows of this length that each source has given before, over all epochs. Empty
    if none has given any."""


class Batches:
    """Shuffled training batches of windows that are cut from a token stream.

    A window is `seq_len` tokens and the `lookahead` tokens after them, which are the targets of
    its last positions: 1 for next-token prediction, more for multi-token prediction. Every source
    (a part of the stream) gets a share of the sequences in proportion to its weight. Each source
    has its own epochs, which visit every window of the source once, each in a different order.

    A run that changes the length or the mixture begins a new `Stretch`, in which each source goes
    on where it was: `following` returns it.

    `stream` has the tokens, `batch_size` is the number of sequences in a global batch (over all
    processes), and `seed` determines the order. `stretch` has the weights and where the sources
    go on; by default, they begin with the weights of the stream's parts. Raises DataError if the
    stream has too few tokens for one batch or a source has too few for one window.
    """

    def __init__(
        self,
        stream: TokenStream,
        seq_len: int,
        batch_size: int,
        seed: int,
        lookahead: int = 1,
        stretch: Stretch | None = None,
    ):
        self.stream = stream
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.lookahead = lookahead
        self.stretch = stretch or Stretch(seq_len, tuple(part.weight for part in stream.parts))
        self._mixture = Mixture(self.stretch.weights)
        self._taken = np.array(self.stretch.taken or [0] * len(stream.parts), dtype=np.int64)
        self._windows_per_source = self._num_windows(seq_len)
        is_used = [weight > 0 for weight in self.stretch.weights]
        self.num_windows = sum(compress(self._windows_per_source, is_used))
        if self.num_windows < batch_size:
            raise DataError(
                f"the corpus has {len(stream):,} training tokens, too few for one batch of "
                f"{batch_size} x {seq_len}, which needs {batch_size * seq_len + lookahead:,}; "
                "lower --train.batch_size or --train.seq_len, or add text"
            )
        if not all(compress(self._windows_per_source, is_used)):
            source = next(
                source
                for source, count in enumerate(self._windows_per_source)
                if is_used[source] and not count
            )
            part = stream.parts[source]
            raise DataError(
                f"source {source + 1} of data.source has {part.stop - part.start:,} training "
                f"tokens, too few for one sequence of {seq_len}; lower --train.seq_len, add text "
                "to the source or remove it"
            )

    def at(self, first_sequence: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Return the rows of a global batch that belong to process `rank`.

        The batch is the `batch_size` sequences from `first_sequence` on. Sequences are numbered
        from 0 over the whole run.

        The result is int64, of shape (rows, seq_len + lookahead). The ranks have equally many rows
        or, if `world_size` does not divide the batch size, some have one more than others. The
        rows of all ranks, one after another, are the same global batch for any `world_size`. A
        batch may contain the end of one epoch and the start of the next. Raises ConfigError if
        there are more processes than sequences, and DataError if the shards are damaged.
        """
        if self.batch_size < world_size:
            raise ConfigError(
                f"train.batch_size={self.batch_size}: must be at least the number of processes "
                f"({world_size}), so that each has a sequence"
            )
        first, last = (self.batch_size * place // world_size for place in (rank, rank + 1))
        starts = self._starts(np.arange(first_sequence + first, first_sequence + last)).tolist()
        return np.stack(
            [self.stream.read(start, start + self.seq_len + self.lookahead) for start in starts]
        )

    def following(self, first: int, seq_len: int, weights: tuple[float, ...]) -> Stretch:
        """Return the stretch that follows before sequence `first`, cut and mixed as given.

        Each source goes on with its next window, so that no window is read twice in an epoch. With
        another `seq_len`, which cuts the source anew, it goes on with its next epoch.
        """
        taken = self._taken + self._mixture.turns_before(first - self.stretch.first)
        if seq_len != self.seq_len:
            epochs = -(-taken // np.maximum(self._windows_per_source, 1))
            taken = epochs * self._num_windows(seq_len)
        return Stretch(seq_len, weights, first, tuple(taken.tolist()))

    def _num_windows(self, seq_len: int) -> list[int]:
        """Return the number of windows of that length in each source."""
        sizes = [part.stop - part.start for part in self.stream.parts]
        return [_num_windows(size, seq_len, self.lookahead) for size in sizes]

    def _starts(self, sequences: np.ndarray) -> np.ndarray:
        """Return the position in the stream at which the window of each sequence (n,) starts.

        Sequences are numbered from 0 over the whole run.
        """
        starts = np.empty_like(sequences)
        sources, numbers = self._mixture.locate(sequences - self.stretch.first)
        numbers += self._taken[sources]
        for source in np.unique(sources):
            num_windows = self._windows_per_source[source]
            epochs, positions = np.divmod(numbers, num_windows)
            for epoch in np.unique(epochs[sources == source]):
                rows = (sources == source) & (epochs == epoch)
                key = (self.seed, int(epoch), int(source))
                windows = shuffled(positions[rows], num_windows, key)
                starts[rows] = self.stream.parts[source].start + windows * self.seq_len
        return starts


class EvaluationBatch(NamedTuple):
    """Windows of one source's held-out text."""

    source: int
    """Number of the source among the parts of the stream."""
    tokens: np.ndarray
    """The windows, int64, of shape (batch_size, seq_len + lookahead)."""
    starts: list[int]
    """Where in the stream each window starts. A row of padding has none."""


def evaluation_windows(
    stream: TokenStream, seq_len: int, lookahead: int, limit_tokens: int, batch_size: int
) -> Iterator[EvaluationBatch]:
    """Yield a sample of a held-out stream, in batches shaped like those of `Batches`.

    A source's windows follow each other without a gap: each predicts the `seq_len` tokens after
    its first one, and together they predict every token of the source but the first. If the sample
    has to be smaller, its windows are spread evenly over the source, because the text at the
    beginning may be unlike the rest. Each source gets a part of `limit_tokens` in proportion to
    its weight, but at least one window, and no window is taken twice.

    The sample does not depend on `batch_size`, and neither does the shape on the text: `PADDING`
    fills the rest of a source's last window and last batch. A compiled model would be compiled
    again for another shape. Raises DataError if a source is too short to predict anything.
    """
    check_evaluable(stream, lookahead)
    weights = sum(part.weight for part in stream.parts)
    for source, part in enumerate(stream.parts):
        limit = int(limit_tokens * part.weight / weights)
        starts = _evaluation_starts(part, seq_len, limit)
        for first in range(0, len(starts), batch_size):
            tokens = np.full((batch_size, seq_len + lookahead), PADDING, dtype=np.int64)
            starts_of_batch = starts[first : first + batch_size]
            for row, start in zip(tokens, starts_of_batch, strict=False):
                stop = min(start + seq_len + lookahead, part.stop)
                row[: stop - start] = stream.read(start, stop)
            yield EvaluationBatch(source, tokens, starts_of_batch)


def check_evaluable(stream: TokenStream, lookahead: int) -> None:
    """Raise DataError if a source's held-out text is too short to predict even one token."""
    shortest = min(part.stop - part.start for part in stream.parts)
    if shortest <= lookahead:
        raise DataError(
            f"the held-out text has {shortest} tokens, too few to evaluate (at least "
            f"{lookahead + 1} are needed); raise --data.val_fraction"
        )


def _evaluation_starts(part: Part, seq_len: int, limit_tokens: int) -> list[int]:
    """Return where the windows of a source's sample start, spread evenly over the source."""
    num_targets = part.stop - part.start - 1
    num_windows = -(-num_targets // seq_len)
    num_taken = num_windows if num_targets <= limit_tokens else max(1, limit_tokens // seq_len)
    # the middle one of each of num_taken equal stretches
    numbers = (2 * np.arange(num_taken) + 1) * num_windows // (2 * num_taken)
    return (part.start + numbers * seq_len).tolist()


def _num_windows(num_tokens: int, seq_len: int, lookahead: int) -> int:
    return max(0, (num_tokens - lookahead) // seq_len)
