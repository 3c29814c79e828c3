"""The words into which our own tokenizers cut a text, and a cache of their ids.

`tokenizers` 0.23 spends most of its time on bookkeeping per word (alignments, offsets, strings), not on merging: about 2.5 MB/s
a core. Text repeats its words, so the words are cut here, by a regular expression, and only new ones are handed to it. Its
own result, which a test compares, is the same (bench/data_speed.py: three to four times as fast).
"""

import json
import re
from collections.abc import Callable

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

# GPT-2's pattern, but letters are ranges instead of a Unicode category: two engines, and their next versions, agree on them.
_SPACE = " \t\n\r\f\v"
_LETTER = "A-Za-z\u00c0-\u1fff\u2c00-\u2dff\u3040-\ufeff\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc"
_LETTER += "\U00010000-\U0001cfff\U00020000-\U0003ffff"
WORD = rf" ?[{_LETTER}]+|'(?:[sdmt]|ll|ve|re)| ?[^{_SPACE}{_LETTER}0-9]+|[{_SPACE}]+(?![^{_SPACE}])| ?[0-9]+|[{_SPACE}]+"

CACHED_WORDS = 2**18  # some 50 MB; then the cache starts anew
LONGEST_CACHED = 64  # characters: longer words hardly come again


def by_words() -> pre_tokenizers.PreTokenizer:
    """The same words for `tokenizers`, their bytes as its byte-level alphabet."""
    split = pre_tokenizers.Split(tokenizers.Regex(WORD), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def cuts_by_words(inner: tokenizers.Tokenizer) -> bool:
    """Whether a text's ids are those of its `WORD`s: our own pre-tokenizer, and nothing that works across words."""
    written = json.loads(inner.to_str())
    ours = tokenizers.Tokenizer(tokenizers.models.BPE())
    ours.pre_tokenizer = by_words()
    return (
        written["pre_tokenizer"] == json.loads(ours.to_str())["pre_tokenizer"]
        and written["normalizer"] is None
        and written["model"].get("dropout") is None
        and all(token["special"] for token in written["added_tokens"])
    )


class WordCache:
    """Encodes texts word by word. `encode`: the ids of each of some words."""

    def __init__(self, encode: Callable[[list[str]], list[list[int]]]):
        self._encode = encode
        self._ids: dict[str, bytes] = {}
        self._cut = re.compile(WORD).findall

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, uint32."""
        words = [self._cut(text) for text in texts]
        new = list(set().union(*words).difference(self._ids))
        self._ids.update(zip(new, map(_packed, self._encode(new)), strict=True))
        found = [np.frombuffer(b"".join([self._ids[word] for word in each]), dtype=np.uint32) for each in words]
        if len(self._ids) > CACHED_WORDS:
            self._ids.clear()
        for word in new:
            if len(word) > LONGEST_CACHED:
                self._ids.pop(word, None)
        return found


def _packed(ids: list[int]) -> bytes:
    return np.array(ids, dtype=np.uint32).tobytes()
