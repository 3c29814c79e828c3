"""Count the bytes of text that tokens stand for, for a loss in bits per byte.

Bits and bytes must be those of the same text. The mean number of bytes per token of a whole corpus
does not belong to a sample of it: an English token stands for more bytes than a Chinese one.
"""

import json
import re
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from moebius.data.tokenizer import Tokenizer

ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())
"""The characters that stand for the 256 bytes in the names of byte-level tokens."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
"""Matches the name of a token that stands for one byte, with the decoder ByteFallback."""


class TextBytes:
    """Counts the bytes of UTF-8 text that token ids stand for.

    The end of a document and other special tokens stand for none. With a byte-level tokenizer,
    every token has a fixed number of bytes, whatever its neighbors are, even if it ends within a
    character. With any other tokenizer, the tokens are decoded.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        contents = json.loads(tokenizer.to_json())
        added = contents["added_tokens"]
        names = _names(contents["model"]) | {token["id"]: token["content"] for token in added}
        silent = {token["id"] for token in added if token["special"]} | {tokenizer.end_of_text}
        decoders = set(_decoders(contents["decoder"]))
        self._table: np.ndarray | None = None
        self._bytes_of: dict[int, int] = dict.fromkeys(silent, 0)
        if "ByteFallback" in decoders:
            single = (number for number, name in names.items() if BYTE_TOKEN.fullmatch(name))
            self._bytes_of |= dict.fromkeys(single, 1)
        if "ByteLevel" in decoders and decoders <= {"ByteLevel", "Fuse"}:
            raw = {token["id"] for token in added}
            self._table = np.zeros(tokenizer.size, dtype=np.int64)
            for number, name in names.items():
                self._table[number] = len(name.encode()) if number in raw else _num_bytes(name)
            self._table[list(silent)] = 0
        self._ordinary = next(
            (number for number in sorted(names) if number not in self._bytes_of), None
        )

    def count(self, tokens: np.ndarray) -> int:
        """Return the number of bytes that the tokens (n,) after the first one stand for.

        The first token is only their context: a decoder may drop a space at the beginning of a
        text, or put one between two tokens.
        """
        if self._table is not None:
            return int(self._table[tokens[1:]].sum())
        context, *ids = tokens.tolist()
        total, start = 0, 0
        ends = [place for place, number in enumerate(ids) if number == self._tokenizer.end_of_text]
        for end in [*ends, len(ids)]:
            total += self._decoded(context, ids[start:end])
            context, start = self._tokenizer.end_of_text, end + 1
        return total

    def _decoded(self, context: int, ids: list[int]) -> int:
        """Return the bytes of tokens of one document that follow the token `context`."""
        # Bytes that are single tokens are not decoded: at the edge of a window, they may be only a
        # part of a character.
        total = sum(self._bytes_of.get(number, 0) for number in ids)
        ids = [number for number in ids if number not in self._bytes_of]
        before: list[int] = []
        if context != self._tokenizer.end_of_text:
            ordinary = self._ordinary if context in self._bytes_of else context
            before = [] if ordinary is None else [ordinary]
        return total + self._size(before + ids) - self._size(before)

    def _size(self, ids: list[int]) -> int:
        return len(self._tokenizer.decode(ids).encode()) if ids else 0


def _names(model: dict[str, Any]) -> dict[int, str]:
    """Return the name of each id in the vocabulary of a tokenizer.json's model."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return {number: name for name, number in vocabulary.items()}
    return {number: name for number, (name, _) in enumerate(vocabulary)}  # Unigram


def _decoders(decoder: dict[str, Any] | None) -> list[str]:
    """Return the types of a tokenizer.json's decoder and of the decoders that it consists of."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [name for part in decoder["decoders"] for name in _decoders(part)]
    return [decoder["type"]]


def _num_bytes(name: str) -> int:
    """Return the bytes of a byte-level token, whose every character stands for one byte.

    The library takes a name with any other character literally.
    """
    return len(name) if set(name) <= ALPHABET else len(name.encode())
