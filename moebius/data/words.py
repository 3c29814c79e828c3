"""The words that our own tokenizers split a text into, and a cache of their token ids.

`tokenizers` 0.23 spends most of its time on bookkeeping for each word (alignments, offsets,
strings) rather than on merging, and reaches about 2.5 MB/s per core. Because text repeats its
words, we split it with a regular expression and pass only new words to the library. The ids are
the same as the library's own, and this is three to four times as fast.
"""

import json
import re
from collections.abc import Callable

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

# This is GPT-2's pattern with ranges in place of the Unicode category of letters, so that the
# regular expressions of Python and of `tokenizers` agree on it, now and in later versions.
_SPACE = " \t\n\r\f\v"
_LETTER = "A-Za-z\u00c0-\u1fff\u2c00-\u2dff\u3040-\ufeff\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc"
_LETTER += "\U00010000-\U0001cfff\U00020000-\U0003ffff"
WORD = rf" ?[{_LETTER}]+|'(?:[sdmt]|ll|ve|re)| ?[^{_SPACE}{_LETTER}0-9]+"
WORD += rf"|[{_SPACE}]+(?![^{_SPACE}])| ?[0-9]+|[{_SPACE}]+"

CACHED_WORDS = 2**18
"""Number of words, about 50 MB with their ids, above which the cache is emptied."""
LONGEST_CACHED = 64
"""Characters in the longest word that is cached; longer words rarely occur again."""


def by_words() -> pre_tokenizers.PreTokenizer:
    """Return a pre-tokenizer for `tokenizers` that splits text into the same words.

    It also maps the words' bytes to the characters of the library's byte-level alphabet.
    """
    split = pre_tokenizers.Split(tokenizers.Regex(WORD), behavior="isolated")
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def splits_by_words(tokenizer: tokenizers.Tokenizer) -> bool:
    """Return whether a text's ids are the concatenated ids of its `WORD`s.

    This requires our own pre-tokenizer, and that nothing depends on more than one word.
    """
    contents = json.loads(tokenizer.to_str())
    ours = tokenizers.Tokenizer(tokenizers.models.BPE())
    ours.pre_tokenizer = by_words()
    return (
        contents["pre_tokenizer"] == json.loads(ours.to_str())["pre_tokenizer"]
        and contents["normalizer"] is None
        and contents["model"].get("dropout") is None
        and all(token["special"] for token in contents["added_tokens"])
    )


class WordCache:
    """An encoder of texts that passes a word to the tokenizer only if it is not in its cache.

    `encode` is the tokenizer's function from a list of words to the ids of each word.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]]):
        self._encode = encode
        self._ids: dict[str, bytes] = {}
        self._split = re.compile(WORD).findall

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, as uint32."""
        words_of_texts = [self._split(text) for text in texts]
        new = list(set().union(*words_of_texts).difference(self._ids))
        self._ids.update(zip(new, map(_packed, self._encode(new)), strict=True))
        ids_of_texts = [
            np.frombuffer(b"".join([self._ids[word] for word in words]), dtype=np.uint32)
            for words in words_of_texts
        ]
        if len(self._ids) > CACHED_WORDS:
            self._ids.clear()
        for word in new:
            if len(word) > LONGEST_CACHED:
                self._ids.pop(word, None)
        return ids_of_texts


def _packed(ids: list[int]) -> bytes:
    return np.array(ids, dtype=np.uint32).tobytes()
