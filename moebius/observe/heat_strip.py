"""The shares of a layer's experts as a row of characters: how even its load is at a glance."""

import numpy as np

from moebius.moe.load import dead_share

EDGES = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
"""Limits of the levels, as multiples of the even share. Reports have the same ones."""
EVEN = 3
"""The level of an even share."""
DEAD = -1
GLYPHS = {DEAD: "x", 0: "▁", 1: "▂", 2: "▃", EVEN: "▄", 4: "▅", 5: "▆", 6: "█"}
"""The levels by their height too, for terminals and eyes without colors."""
WIDEST_EXPERT = 3
"""Characters of an expert at most."""


def strip(shares_E: np.ndarray, width: int) -> list[tuple[int, int]]:
    """Return runs of characters of the same level: the level and their number.

    They are at most `width` characters in all. If there are more experts than characters, they are
    sorted by their share, and each character stands for several. It shows the most uneven of them;
    a dead one is the most uneven of all.
    """
    levels = levels_of(shares_E)
    if len(levels) > width:
        levels = levels[np.argsort(shares_E, kind="stable")]
        # What is worse has the larger key: dead, then by the distance from an even share.
        severity = np.where(levels == DEAD, 16, abs(levels - EVEN))
        keys = severity * 16 + levels + 1
        starts = np.arange(width) * len(levels) // width
        levels = np.maximum.reduceat(keys, starts) % 16 - 1
    else:
        levels = np.repeat(levels, min(WIDEST_EXPERT, width // len(levels)))
    starts = np.flatnonzero(np.diff(levels, prepend=DEAD - 1))
    lengths = np.diff(starts, append=len(levels))
    return list(zip(levels[starts].tolist(), lengths.tolist(), strict=True))


def levels_of(shares_E: np.ndarray) -> np.ndarray:
    """Return the level of each expert, from DEAD to 6."""
    num_experts = len(shares_E)
    levels = np.searchsorted(EDGES, shares_E * num_experts, side="right")
    return np.where(shares_E < dead_share(num_experts), DEAD, levels)
