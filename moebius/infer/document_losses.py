"""The loss of each held-out document, summed over the windows of an evaluation."""

import numpy as np
from torch import Tensor

from moebius.data import Corpus
from moebius.data.batches import PADDING, EvaluationBatch

READ_AT_ONCE = 2**16
"""Number of tokens that are read at once when the end of a document is searched for."""
TOKENS, NATS, BYTES = range(3)
"""The columns of `DocumentLosses.sums`."""


class DocumentLosses:
    """Adds up tokens, nats and bytes of each document while an evaluation runs.

    Only the tokens in the sample count. A token belongs to the document that it is predicted from,
    so that the separator at a document's end is a part of that document.
    """

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self._sums: list[list[np.ndarray]] = [[] for _ in corpus.val.parts]
        self._last: list[int | None] = [None] * len(corpus.val.parts)
        """Position of each source's last predicted token."""

    def add(self, batch: EvaluationBatch, nats_BS: Tensor) -> None:
        """Add a batch. The batches of a source come in the order of its text."""
        S = nats_BS.shape[1]
        rows = zip(batch.tokens, nats_BS.double().cpu().numpy(), batch.starts, strict=False)
        for tokens, nats_S, start in rows:
            window = tokens[: S + 1]
            self._add_window(batch.source, window[window != PADDING], nats_S, start)

    def sums(self, source: int) -> np.ndarray:
        """Return a row of `TOKENS`, `NATS` and `BYTES` for each document of a source."""
        return np.array(self._sums[source]).reshape(-1, 3)

    def _add_window(self, source: int, window: np.ndarray, nats_S: np.ndarray, start: int) -> None:
        """Add a window of n + 1 tokens, n of which are predicted."""
        sums, last = self._sums[source], self._last[source]
        num_predicted = len(window) - 1
        is_separator = window[:num_predicted] == self._corpus.tokenizer.end_of_text
        # What precedes the first separator belongs to a document that began earlier.
        begins = [0, *(np.flatnonzero(is_separator[1:]) + 1).tolist()]
        goes_on = last is not None and not self._has_separator(last, start + 1)
        for first, stop in zip(begins, [*begins[1:], num_predicted], strict=True):
            num_bytes = self._corpus.text_bytes.count(window[first : stop + 1])
            piece = np.array([stop - first, nats_S[first:stop].sum(), num_bytes], dtype=np.float64)
            if goes_on:
                sums[-1] += piece
            else:
                sums.append(piece)
            goes_on = False
        self._last[source] = start + num_predicted

    def _has_separator(self, start: int, stop: int) -> bool:
        """Return whether a document begins in tokens [start:stop]."""
        for place in range(start, stop, READ_AT_ONCE):
            tokens = self._corpus.val.read(place, min(stop, place + READ_AT_ONCE))
            if (tokens == self._corpus.tokenizer.end_of_text).any():
                return True
        return False
