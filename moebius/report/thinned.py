"""Thin out a series of unknown length while it is read, in constant memory."""

import numpy as np


class Thinned:
    """Rows of figures, of which neighbors are merged once there are too many.

    A merged row has each figure's mean, lowest and highest value. All rows but the last stand for
    the same number of rows that were added.
    """

    def __init__(self, num_figures: int, most: int):
        """There are always fewer than twice as many rows as `most`, and never fewer than `most`
        once that many were added."""
        shape = (2 * most, num_figures)
        self._total, self._number = np.zeros(shape), np.zeros(shape)
        self._low, self._high = np.full(shape, np.nan), np.full(shape, np.nan)
        self._size, self._stride, self._room = 0, 1, 0

    def add(self, values: np.ndarray) -> None:
        """Add a row (num_figures,). A figure that is not finite counts as missing."""
        if not self._room:
            self._begin()
        row = self._size - 1
        is_known = np.isfinite(values)
        self._total[row] += np.where(is_known, values, 0)
        self._number[row] += is_known
        known = np.where(is_known, values, np.nan)
        self._low[row] = np.fmin(self._low[row], known)
        self._high[row] = np.fmax(self._high[row], known)
        self._room -= 1

    def __len__(self) -> int:
        return self._size

    @property
    def mean(self) -> np.ndarray:
        """Mean of each figure in each row, NaN where it is always missing."""
        number = self._number[: self._size]
        return np.where(number > 0, self._total[: self._size] / np.maximum(number, 1), np.nan)

    @property
    def low(self) -> np.ndarray:
        """Lowest value of each figure in each row."""
        return self._low[: self._size]

    @property
    def high(self) -> np.ndarray:
        """Highest value of each figure in each row."""
        return self._high[: self._size]

    def _begin(self) -> None:
        """Begin a new row, after making room for it."""
        if self._size == len(self._total):
            self._merge()
        self._size, self._room = self._size + 1, self._stride

    def _merge(self) -> None:
        """Merge each pair of neighbors."""
        half = len(self._total) // 2
        for values in (self._total, self._number):
            values[:half] = values[::2] + values[1::2]
            values[half:] = 0
        for values, better in ((self._low, np.fmin), (self._high, np.fmax)):
            values[:half] = better(values[::2], values[1::2])
            values[half:] = np.nan
        self._size, self._stride = half, 2 * self._stride
