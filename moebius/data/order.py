"""Which window of which source a sequence is: a function of seed, number and corpus sizes, for any number, at once.

Nothing is scanned and nothing is kept per window, so a run of any length over a corpus of any size may start anywhere.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np

LONGEST_PERIOD = 2**16  # sequences after which a mixture repeats
ROUNDS = 8  # of the Feistel network; four make a pseudo-random permutation of a large domain, small ones want more


class Mixture:
    """Which source each sequence is from, by weight.

    Earliest deadline first, over a period in which each source has a whole number of turns: a source's j-th turn is due
    before its share of the sequences reaches j + 1 and not before it has reached j. So of the first n sequences, each source
    has its share of n to within one (Liu and Layland 1973: one processor that is used fully meets every deadline).
    Weights that take a period above 65,536 are rounded to one of that.
    """

    def __init__(self, weights: Sequence[float]):
        turns = _whole(weights)
        self.period = sum(turns)
        self._turns = np.array(turns, dtype=np.int64)
        self._source = np.empty(self.period, dtype=np.int64)
        self._turn = np.empty(self.period, dtype=np.int64)  # of its source, within the period
        taken = [0] * len(turns)
        for place in range(self.period):
            ready = (each for each, share in enumerate(turns) if share and taken[each] * self.period // share <= place)
            chosen = min(ready, key=lambda each: -(-(taken[each] + 1) * self.period // turns[each]))
            self._source[place], self._turn[place] = chosen, taken[chosen]
            taken[chosen] += 1

    def place(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each sequence (n,): its source, and how many sequences of that source came before it."""
        periods, places = np.divmod(sequences, self.period)
        sources = self._source[places]
        return sources, periods * self._turns[sources] + self._turn[places]


def shuffled(places: np.ndarray, size: int, key: Sequence[int]) -> np.ndarray:
    """Where the places (n,) below `size` go under the permutation of range(size) that `key` stands for; int64.

    A Feistel network on the next power of four, walked until it falls below `size` (Black and Rogaway 2002): the image of one
    place takes no list of all, which for a terabyte of tokens would be gigabytes in every process.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)
    found = _feistel(places.astype(np.uint64), keys, half)
    while (outside := found >= size).any():
        found[outside] = _feistel(found[outside], keys, half)
    return found.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return left << bits | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: every bit of the input moves every bit of the output."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _whole(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the weights' proportions: exactly if they need not be large. A weight above 0 stays above 0."""
    shares = [Fraction(str(weight)) for weight in weights]  # 0.1 is meant as a tenth
    turns = [int(share * lcm(*(each.denominator for each in shares))) for share in shares]
    turns = [each // gcd(*turns) for each in turns]
    if sum(turns) <= LONGEST_PERIOD:
        return turns
    return [max(1, round(share / sum(shares) * LONGEST_PERIOD)) if share else 0 for share in shares]
