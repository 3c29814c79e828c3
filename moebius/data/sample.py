"""Choose the text on which a BPE is trained: a bounded sample, spread over the whole source."""

from collections.abc import Iterable, Iterator

from moebius.data.long_text import Text, slices

SAMPLE_CHARACTERS = 10_000_000
"""Largest number of characters in a sample. With more, the merges hardly change, while training
takes longer."""
READ_CHARACTERS = 1_000_000_000
"""Largest number of characters of a source that are read to choose a sample, because reading
terabytes would take days."""
PIECE_CHARACTERS = 8_000
"""Characters taken from one place; few, so that a long document does not outweigh the others."""


def sample(texts: Iterable[Text], share: float = 1.0) -> list[str]:
    """Return pieces of the texts, at most `share` of `SAMPLE_CHARACTERS` characters in all.

    Every n-th piece is taken. A stream does not say how long it is, so n starts at 1 and doubles
    whenever the sample becomes too long. The first 10 million characters would not do, because
    files are read in sorted order, so they would all be from one part of the source. A sample of a
    sample is the same sample.
    """
    kept: list[str] = []
    stride, num_characters = 1, 0
    for number, piece in enumerate(_pieces(texts, share)):
        if number % stride:
            continue
        kept.append(piece)
        num_characters += len(piece)
        if num_characters > SAMPLE_CHARACTERS * share and len(kept) > 1:
            kept, stride = kept[::2], stride * 2
            num_characters = sum(map(len, kept))
    return kept


def _pieces(texts: Iterable[Text], share: float) -> Iterator[str]:
    num_read = 0
    for text in texts:
        for piece in slices(text, PIECE_CHARACTERS):
            yield piece
            num_read += len(piece)
        if num_read >= READ_CHARACTERS * share:
            return
