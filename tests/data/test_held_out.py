"""What is held out is found out by reading no more than is necessary."""

import random
from collections.abc import Iterator

import pytest

from moebius.data import prepare
from moebius.data.held_out import (
    FEWEST_HELD_OUT,
    LOWEST_HASHES,
    TooFew,
    document_hash,
    held_out_below,
)
from moebius.data.long_text import LongText
from moebius.data.tokenizer import Tokenizer
from tests.data.corpora import configure


def reference(texts: list[str], fraction: float) -> float:
    """Return the fraction according to the hashes of all documents."""
    hashes = sorted({document_hash(text)[0] for text in texts})
    if fraction > hashes[-1]:
        return hashes[-1]
    fewest = max(1, int(min(len(hashes), LOWEST_HASHES) * FEWEST_HELD_OUT))
    return max(fraction, hashes[fewest])


def test_the_fraction_is_that_of_all_documents_however_many_were_read():
    generator = random.Random(0)
    for _ in range(300):
        count = generator.choice([2, 3, 9, 30, 159, 160, 161, 400, 3000])
        texts = [str(generator.randrange(count * 3)) for _ in range(count)] + ["a", "b"]
        fraction = generator.choice([1e-9, 0.001, 0.01, 0.1, 0.5, 1 - 1e-9])
        assert held_out_below(iter(texts), fraction) == reference(texts, fraction)


def test_a_large_source_is_not_read_to_its_end():
    num_read = 0

    def texts() -> Iterator[str]:
        nonlocal num_read
        for num_read in range(1_000_000):
            yield str(num_read)

    assert held_out_below(texts(), 0.01) == 0.01
    assert num_read < 5_000


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "a"]])
def test_less_than_two_documents_are_too_few(texts):
    with pytest.raises(TooFew) as caught:
        held_out_below(texts, 0.1)
    assert caught.value.args == (len(set(texts)),)


def test_a_long_text_has_the_hash_of_the_whole_string():
    parts = ["one é ", "", "two", "\U0001f600"]
    text = "".join(parts)
    assert document_hash(LongText(lambda: iter(parts))) == document_hash(text)
    assert document_hash(text)[1] == len(text.encode())


@pytest.mark.parametrize("val_fraction", [1e-9, 0.1, 1 - 1e-9])
def test_nothing_is_tokenized_twice(source, monkeypatch, val_fraction):
    tokenized: list[str] = []
    original = Tokenizer.encode_batch

    def noted(self: Tokenizer, batch: list[str]):
        tokenized.extend(batch)
        return original(self, batch)

    monkeypatch.setattr(Tokenizer, "encode_batch", noted)
    prepare(configure(source, val_fraction=val_fraction, workers=1), 257)
    assert tokenized == [f"document {n} é " * 5 for n in range(200)]
