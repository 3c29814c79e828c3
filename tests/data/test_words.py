"""Our words are those of the library, and the ids from their cache are those of the library."""

import json
import random
import re

import pytest
import tokenizers

from moebius.data import words
from moebius.data.tokenizer import Tokenizer
from moebius.data.words import WORD, WordCache, by_words, splits_by_words
from tests.data.test_tokenizer import SENTENCES, by_gpt2_words, random_text, tokenizer

TRICKY_TEXTS = [
    "it's '' 'll ''ll 's's",
    "a \u3000 b\u00a0c\x1c d \u2028\n",
    "12 345\t6 \n\n  x",
    "\x85 \x1f",
    "",
    " ",
    "\n\n\n",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two words", ["two", " words"]),
        ("it's what they'll say", ["it", "'s", " what", " they", "'ll", " say"]),
        ("x12 34", ["x", "12", " 34"]),
        ("a == b!?", ["a", " ==", " b", "!?"]),
        ("a   b", ["a", "  ", " b"]),  # the last space belongs to the word
        ("a\n\n    b", ["a", "\n\n   ", " b"]),
        ("a\n", ["a", "\n"]),
        ("naïve 漢字", ["naïve", " 漢字"]),
    ],
)
def test_words_by_hand(text, expected):
    assert re.findall(WORD, text) == expected


def test_no_character_is_lost_and_the_library_splits_in_the_same_places():
    generator = random.Random(3)
    library = by_words()
    for text in [*TRICKY_TEXTS, *SENTENCES[:3], *(random_text(generator) for _ in range(500))]:
        ours = re.findall(WORD, text)
        assert "".join(ours) == text
        assert ours == [text[start:stop] for _, (start, stop) in library.pre_tokenize_str(text)]


def inner(text: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(text)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"model": {"dropout": 0.5}},
        {"added_tokens": [{"special": False}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_tokenizer_that_looks_beyond_a_word_has_no_cache(change, tmp_path):
    contents = json.loads(tokenizer().to_json())
    assert splits_by_words(inner(json.dumps(contents)))
    for name, value in change.items():
        if isinstance(value, dict) and contents[name]:
            value = contents[name] | value
        elif isinstance(value, list):
            value = [
                *contents[name],
                contents[name][0] | value[0] | {"content": "two words", "id": 400},
            ]
        contents[name] = value
    assert not splits_by_words(inner(json.dumps(contents)))
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    assert Tokenizer.load(tmp_path / "tokenizer.json")._words is None


def test_only_our_own_words_are_cached():
    assert tokenizer()._words is not None
    assert tokenizer("bytes")._words is not None
    assert by_gpt2_words()._words is None


@pytest.mark.parametrize("limit", [0, 3, 2**18])
def test_words_from_the_cache_have_the_ids_of_the_library(monkeypatch, limit):
    """The texts repeat words, even after the cache has been emptied."""
    monkeypatch.setattr(words, "CACHED_WORDS", limit)
    monkeypatch.setattr(words, "LONGEST_CACHED", 5)
    cached = tokenizer()
    generator = random.Random(1)
    texts = [random_text(generator) for _ in range(300)]
    texts += [*TRICKY_TEXTS, *SENTENCES, *SENTENCES]
    for first in range(0, len(texts), 50):
        batch = texts[first : first + 50]
        ids_of_texts = [ids.tolist() for ids in cached.encode_batch(batch)]
        assert ids_of_texts == [cached.encode(text) for text in batch]


class CountingEncoder:
    """An encoder that gives each word its length as its only id, and notes what it was given."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def __call__(self, new: list[str]) -> list[list[int]]:
        self.asked.append(sorted(new))
        return [[len(word)] for word in new]


def test_only_new_words_are_passed_on():
    encoder = CountingEncoder()
    cache = WordCache(encoder)
    assert [ids.tolist() for ids in cache.encode(["a bc", " bc a"])] == [[1, 3], [3, 2]]
    assert [ids.tolist() for ids in cache.encode(["a", "", "a bc def"])] == [[1], [], [1, 3, 4]]
    assert encoder.asked == [[" a", " bc", "a"], [" def"]]


def test_long_words_are_not_kept(monkeypatch):
    monkeypatch.setattr(words, "LONGEST_CACHED", 4)
    encoder = CountingEncoder()
    cache = WordCache(encoder)
    for _ in range(2):
        assert cache.encode(["four fifth"])[0].tolist() == [4, 6]
    assert encoder.asked == [[" fifth", "four"], [" fifth"]]


def test_a_full_cache_is_emptied_after_its_ids_are_read(monkeypatch):
    monkeypatch.setattr(words, "CACHED_WORDS", 2)
    encoder = CountingEncoder()
    cache = WordCache(encoder)
    for text in ("a b", "a b c", "a b"):
        assert cache.encode([text])[0].tolist() == [1, 2, 2][: len(text.split())]
    assert encoder.asked == [[" b", "a"], [" c"], [" b", "a"]]
