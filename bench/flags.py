"""Put flags over other flags, which the command line refuses to do silently."""

from collections.abc import Iterable, Iterator
from itertools import islice


def layered(*layers: Iterable[str]) -> list[str]:
    """Return the flags of all layers, without those that a later layer sets again.

    Each flag is `--section.key=value` or `--section.key value`, as the command line accepts them.
    """
    pairs = {name: words for layer in layers for name, words in _named(layer)}
    return [word for words in pairs.values() for word in words]


def _named(flags: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each setting's name, in one spelling, and the words that set it."""
    words = iter(flags)
    for word in words:
        name, has_value, _ = word.partition("=")
        yield name.replace("-", "_"), [word, *islice(words, 0 if has_value else 1)]
