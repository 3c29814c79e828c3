"""Decide which documents are held out for evaluation: those whose hash is below a fraction."""

import hashlib
from bisect import insort
from collections.abc import Callable, Iterable

from moebius.data.long_text import Text, parts_of

FEWEST_HELD_OUT = 1 / 10
"""Share of its different documents that a source with up to `LOWEST_HASHES` of them holds out at
least, if that is a document. A larger source holds out as many as one of that size: 16."""
LOWEST_HASHES = 160
"""How many of the lowest hashes are remembered. A source with fewer different documents is small,
and holds out a larger share of them."""


def document_hash(text: Text) -> tuple[float, int]:
    """Return a number in [0, 1) that depends only on the document's UTF-8 bytes, and their number.

    Documents whose number is below data.val_fraction are held out.
    """
    hash_, num_bytes = hashlib.blake2b(digest_size=6), 0
    for part in (text,) if isinstance(text, str) else parts_of(text):
        data = part.encode()
        hash_.update(data)
        num_bytes += len(data)
    return int.from_bytes(hash_.digest()) / 2**48, num_bytes


class TooFew(Exception):
    """A source has less than two different documents; the argument is how many it has."""


def held_out_below(
    texts: Iterable[Text],
    fraction: float,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> float:
    """Return the fraction, or a better one if it holds out too few documents or all of them.

    The texts are only read until it is certain that the fraction is good, which is soon unless the
    source is small. `advance` is called with the bytes of each. Raises TooFew.
    """
    lowest: list[float] = []
    highest = 0.0
    most = int(LOWEST_HASHES * FEWEST_HELD_OUT)
    for text in texts:
        hash_, num_bytes = document_hash(text)
        advance(num_bytes)
        highest = max(highest, hash_)
        if (len(lowest) < LOWEST_HASHES or hash_ < lowest[-1]) and hash_ not in lowest:
            insort(lowest, hash_)
            del lowest[LOWEST_HASHES:]
        # Further documents can only lower the hashes that are the lowest ones.
        if len(lowest) > most and lowest[most] <= fraction <= highest:
            return fraction
    if len(lowest) < 2:
        raise TooFew(len(lowest))
    if fraction > highest:  # train only on the document with the highest hash
        return highest
    return max(fraction, lowest[max(1, int(len(lowest) * FEWEST_HELD_OUT))])
