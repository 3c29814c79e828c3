"""Deterministic batches: a pure function of corpus, seed and step, whatever the process or the restart."""

from collections.abc import Iterator

import numpy as np

from moebius.data.order import Mixture, shuffled
from moebius.data.stream import TokenStream
from moebius.errors import ConfigError, DataError


class Batches:
    """Windows of seq_len tokens, each followed by the `lookahead` tokens it predicts. Every source (part of the stream) has
    its weight's share of the sequences, and epochs of its own, each of which visits each window once in an order of its own.

    Raises DataError if the stream has too few tokens for one batch, or a source for one window.
    """

    def __init__(self, stream: TokenStream, seq_len: int, batch_size: int, seed: int, lookahead: int = 1):
        self.stream, self.seq_len, self.batch_size, self.seed, self.lookahead = stream, seq_len, batch_size, seed, lookahead
        self._mixture = Mixture([part.weight for part in stream.parts])
        self._windows = [_num_windows(part.stop - part.start, seq_len, lookahead) for part in stream.parts]
        self.num_windows = sum(self._windows)
        if self.num_windows < batch_size:
            raise DataError(
                f"the corpus has {len(stream):,} training tokens, too few for one batch of {batch_size} x {seq_len} "
                f"(it takes {batch_size * seq_len + lookahead:,}); lower --train.batch_size or --train.seq_len, or add text"
            )
        if not all(self._windows):
            number = self._windows.index(0)
            part = stream.parts[number]
            raise DataError(
                f"source {number + 1} of data.source has {part.stop - part.start:,} training tokens, too few for one "
                f"sequence of {seq_len}; lower --train.seq_len, add text or leave it out"
            )

    def at(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """tokens (batch_size / world, seq_len + lookahead), int64: the rank's rows of that step's batch, which is the same
        for any `world`. A batch may straddle two epochs. Raises ConfigError if `world` does not divide it, DataError."""
        if self.batch_size % world:
            raise ConfigError(
                f"train.batch_size={self.batch_size}: must be a multiple of the number of processes ({world}), "
                "each has as many sequences"
            )
        rows = self.batch_size // world
        first = step * self.batch_size + rank * rows
        starts = self._starts(np.arange(first, first + rows)).tolist()
        return np.stack([self.stream.read(start, start + self.seq_len + self.lookahead) for start in starts])

    def _starts(self, sequences: np.ndarray) -> np.ndarray:
        """First token of each sequence's window."""
        starts = np.empty_like(sequences)
        sources, numbers = self._mixture.place(sequences)
        for source in np.unique(sources):
            windows = self._windows[source]
            epochs, places = np.divmod(numbers, windows)
            for epoch in np.unique(epochs[sources == source]):
                rows = (sources == source) & (epochs == epoch)
                order = shuffled(places[rows], windows, key=(self.seed, int(epoch), int(source)))
                starts[rows] = self.stream.parts[source].start + order * self.seq_len
        return starts


def evaluation_windows(
    stream: TokenStream, seq_len: int, lookahead: int, limit_tokens: int, batch_size: int
) -> Iterator[np.ndarray]:
    """The stream in order, in batches like `Batches`', up to about `limit_tokens`. Several sources take turns in proportion to
    their weights, each in order, so that the mean over the windows is over the mixture; a short one begins anew.

    Only whole batches, because a compiled model would be compiled anew for another shape; a stream too short for one is one
    batch of fewer rows, and one shorter than a window is one shorter window. Raises DataError if it predicts nothing.
    """
    check_evaluable(stream, lookahead)
    seq_len = min(seq_len, *(part.stop - part.start - lookahead for part in stream.parts))
    starts = _evaluation_starts(stream, seq_len, lookahead, max(1, limit_tokens // seq_len))
    batch_size = min(batch_size, len(starts))
    for first in range(0, len(starts) - batch_size + 1, batch_size):
        yield np.stack([stream.read(start, start + seq_len + lookahead) for start in starts[first : first + batch_size]])


def check_evaluable(stream: TokenStream, lookahead: int) -> None:
    """Raises DataError if the held-out text, of any source, is too short to predict a token of it."""
    shortest = min(part.stop - part.start for part in stream.parts)
    if shortest <= lookahead:
        raise DataError(f"the held-out text has {shortest} tokens, too few to evaluate; raise --data.val_fraction")


def _evaluation_starts(stream: TokenStream, seq_len: int, lookahead: int, limit: int) -> list[int]:
    windows = np.array([_num_windows(part.stop - part.start, seq_len, lookahead) for part in stream.parts])
    firsts = np.array([part.start for part in stream.parts])
    mixture = Mixture([part.weight for part in stream.parts])
    sources, numbers = mixture.place(np.arange(min(limit, windows.sum())))
    return (firsts[sources] + numbers % windows[sources] * seq_len).tolist()


def _num_windows(tokens: int, seq_len: int, lookahead: int) -> int:
    return max(0, (tokens - lookahead) // seq_len)
