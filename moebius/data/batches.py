"""Deterministic batches: a pure function of corpus, seed and step, whatever the process or the restart."""

from collections.abc import Iterator

import numpy as np

from moebius.data.shards import TokenStream
from moebius.errors import DataError


class Batches:
    """Windows of seq_len tokens, each followed by the `lookahead` tokens it predicts; every epoch visits each once, in an
    order of its own.

    Raises DataError if the stream has too few tokens for one batch.
    """

    def __init__(self, stream: TokenStream, seq_len: int, batch_size: int, seed: int, lookahead: int = 1):
        self.stream, self.seq_len, self.batch_size, self.seed, self.lookahead = stream, seq_len, batch_size, seed, lookahead
        self.num_windows = max(0, (len(stream) - lookahead) // seq_len)
        if self.num_windows < batch_size:
            raise DataError(
                f"the corpus has {len(stream):,} training tokens, too few for one batch of {batch_size} x {seq_len} "
                f"(it takes {batch_size * seq_len + lookahead:,}); lower --train.batch_size or --train.seq_len, or add text"
            )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def at(self, step: int) -> np.ndarray:
        """tokens (batch_size, seq_len + lookahead), int64, of that step. A batch may straddle two epochs."""
        first = step * self.batch_size
        windows = (self._window(sequence) for sequence in range(first, first + self.batch_size))
        return np.stack([self.stream.read(window, window + self.seq_len + self.lookahead) for window in windows])

    def _window(self, sequence: int) -> int:
        epoch, position = divmod(sequence, self.num_windows)
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, generator.permutation(self.num_windows)
        return int(self._order[position]) * self.seq_len


def evaluation_windows(
    stream: TokenStream, seq_len: int, lookahead: int, limit_tokens: int, batch_size: int
) -> Iterator[np.ndarray]:
    """The stream in order, in batches like `Batches`', up to about `limit_tokens`.

    Only whole batches, because a compiled model would be compiled anew for another shape; a stream too short for one is one
    batch of fewer rows, and one shorter than a window is one shorter window. Raises DataError if it predicts nothing.
    """
    check_evaluable(stream, lookahead)
    seq_len = min(seq_len, len(stream) - lookahead)
    num_windows = min((len(stream) - lookahead) // seq_len, max(1, limit_tokens // seq_len))
    batch_size = min(batch_size, num_windows)
    for first in range(0, num_windows - batch_size + 1, batch_size):
        starts = [window * seq_len for window in range(first, first + batch_size)]
        yield np.stack([stream.read(start, start + seq_len + lookahead) for start in starts])


def check_evaluable(stream: TokenStream, lookahead: int) -> None:
    """Raises DataError if the held-out text is too short to predict a token of it."""
    if len(stream) <= lookahead:
        raise DataError(f"the held-out text has {len(stream)} tokens, too few to evaluate; raise --data.val_fraction")
