"""The order in which training visits the windows of every source.

The source and the window of any sequence are computed directly from the seed, the sequence's
number and the corpus sizes. Nothing is scanned or stored per window, so a run of any length over a
corpus of any size can start anywhere.
"""

from collections.abc import Sequence
from fractions import Fraction
from heapq import heappop, heappush
from math import gcd, lcm

import numpy as np

LONGEST_PERIOD = 2**16
"""Largest period of a mixture: the number of sequences after which its sources repeat."""
ROUNDS = 8
"""Rounds of the Feistel network. Four rounds make a pseudo-random permutation of a large domain;
small domains need more."""


class Mixture:
    """The source of every sequence, in proportion to the sources' weights.

    Sequences are assigned by earliest deadline first, over a period in which each source has a
    whole number of turns. A source's j-th turn (counted from 0) may be taken once its share of the
    sequences so far has reached j, and is due before that share reaches j + 1. Each source
    therefore has its share of the first n sequences to within one sequence, for any n (Liu and
    Layland 1973: a fully used single processor meets every deadline). Weights that would need a
    period above `LONGEST_PERIOD` are rounded.
    """

    def __init__(self, weights: Sequence[float]):
        turns_per_source = _turns_per_period(weights)
        self.period = sum(turns_per_source)
        self._turns_per_source = np.array(turns_per_source, dtype=np.int64)
        # For each turn of a period, its source and how many turns that source had before it.
        source = np.repeat(np.arange(len(turns_per_source)), self._turns_per_source)
        first = np.cumsum(self._turns_per_source) - self._turns_per_source
        turn = np.arange(self.period) - first[source]
        start = turn * self.period // self._turns_per_source[source]
        deadline = -(-(turn + 1) * self.period // self._turns_per_source[source])
        order = np.argsort(start, kind="stable")
        starts = [*start[order].tolist(), self.period]
        # Of equal deadlines, the first source's comes first.
        waiting = list(zip(deadline[order].tolist(), order.tolist(), strict=True))
        ready: list[tuple[int, int]] = []
        taken, num_started = np.empty(self.period, dtype=np.int64), 0
        for position in range(self.period):
            while starts[num_started] <= position:
                heappush(ready, waiting[num_started])
                num_started += 1
            taken[position] = heappop(ready)[1]
        self._source, self._turn = source[taken], turn[taken]

    def locate(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each sequence, and its number among the sequences of that source.

        `sequences` and both results are int64, of shape (n,); all numbers count from 0.
        """
        periods, positions = np.divmod(sequences, self.period)
        sources = self._source[positions]
        return sources, periods * self._turns_per_source[sources] + self._turn[positions]

    def turns_before(self, sequence: int) -> np.ndarray:
        """Return how many of the sequences before this one each source has; int64, (sources,)."""
        periods, position = divmod(sequence, self.period)
        rest = np.bincount(self._source[:position], minlength=len(self._turns_per_source))
        return periods * self._turns_per_source + rest


def shuffled(positions: np.ndarray, size: int, key: Sequence[int]) -> np.ndarray:
    """Return the images of some positions under the permutation of range(size) that `key` selects.

    `positions` (n,) are below `size`; the result (n,) is int64. The permutation is a Feistel
    network on the next power of four, applied again to every image that is not below `size` (cycle
    walking: Black and Rogaway 2002). It computes one image without a table of all images, which
    would take gigabytes in every process for a terabyte of tokens.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    round_keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)
    images = _feistel(positions.astype(np.uint64), round_keys, half_bits)
    while (outside := images >= size).any():
        images[outside] = _feistel(images[outside], round_keys, half_bits)
    return images.astype(np.int64)


def _feistel(values: np.ndarray, round_keys: np.ndarray, half_bits: int) -> np.ndarray:
    bits, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = values >> bits, values & mask
    for key in round_keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return left << bits | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return splitmix64's finalizer of each value: every input bit affects every output bit."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _turns_per_period(weights: Sequence[float]) -> list[int]:
    """Return each source's number of turns in a period, in proportion to the weights.

    The sum of the numbers is the mixture's period.

    The proportions are exact unless the sum would be above `LONGEST_PERIOD`. A weight above 0
    always gets a number above 0.
    """
    shares = [Fraction(str(weight)) for weight in weights]  # str, because 0.1 means a tenth
    denominator = lcm(*(share.denominator for share in shares))
    turns = [int(share * denominator) for share in shares]
    divisor = gcd(*turns)
    turns = [number // divisor for number in turns]
    total = sum(turns)
    if total <= LONGEST_PERIOD:
        return turns
    return [
        max(1, round(Fraction(number * LONGEST_PERIOD, total))) if number else 0
        for number in turns
    ]
