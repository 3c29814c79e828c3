"""Tokenizers: byte-level BPE trained on the sources, raw bytes, or a given tokenizer.json; all run by `tokenizers`."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moebius.config import DataConfig
from moebius.data.words import WordCache, by_words, cuts_by_words
from moebius.errors import ConfigError, DataError, StorageError

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>")
SAMPLE_CHARACTERS = 10_000_000  # merges hardly change beyond it, training time grows with it
SAMPLE_READ_CHARACTERS = 1_000_000_000  # what is read to choose them from: a first pass over terabytes would take days
SAMPLE_PIECE = 8_000  # characters taken in one place: few, so that no long document outweighs the others
MOST_IDS = 2**24
FEWEST_BPE_TOKENS = 257  # 256 bytes and the end of text

PIECE_CHARACTERS = 2**20  # of a document that are tokenised at once
CUT_SEARCHED, CUT_CONTEXT, CUT_TRIES = 2**14, 128, 8  # characters, characters, places
CUT = re.compile(r"\S(?=[ \n])")


class Tokenizer:
    """Text to ids and back. `end_of_text` separates documents; no text can spell it. `size`: number of ids."""

    def __init__(self, inner: tokenizers.Tokenizer, origin: str):
        # text that spells a special token is text, or a document could end itself
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        self._words = WordCache(self._encode_all) if cuts_by_words(inner) else None
        self.end_of_text = self._find_end(origin)
        self.size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Raises DataError if the file is missing or is no tokenizer.json, StorageError if it may not be read."""
        try:
            if not path.is_file():  # a pipe would be waited for
                raise DataError(f"{path}: no such tokenizer file; data.tokenizer is bpe, bytes or a tokenizer.json")
            text = path.read_bytes().decode()
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a tokenizer.json: byte offset {error.start} is not UTF-8") from None
        try:
            contents = json.loads(text)  # its errors name a line; those of the Rust side are about its own types
            _check_ids(contents, path)
            return cls(tokenizers.Tokenizer.from_str(text), str(path))
        except DataError:
            raise
        except Exception as error:  # the Rust side raises bare Exception
            raise DataError(f"{path}: not a tokenizer.json: {' '.join(str(error).split())[:200]}") from None

    def save(self, path: Path) -> None:
        """Write tokenizer.json. Raises OSError."""
        path.write_bytes(self.to_json().encode())

    def to_json(self) -> str:
        """The contents of tokenizer.json."""
        return self._inner.to_str(pretty=False)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with no special tokens added."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, uint32: those that `encode` gives, sooner."""
        if self._words is not None:
            return self._words.encode(texts)
        return [np.array(ids, dtype=np.uint32) for ids in self._encode_all(texts)]

    def pieces(self, text: str) -> Iterator[str]:
        """A text in pieces of about a million characters, so that one of any length is encoded in bounded memory.

        A piece ends before a space or a line's end where the tokenizer gives the text around it the same ids whole and in two,
        which the pre-tokenizers of all common byte-level BPEs do; then the pieces' ids are the text's. Only where there is
        no such place in 16,000 characters (one endless word, a tokenizer without words) they may differ around the cut.
        """
        start = 0
        while len(text) - start > PIECE_CHARACTERS:
            stop = self._cut(text, start + PIECE_CHARACTERS)
            yield text[start:stop]
            start = stop
        yield text[start:]

    def _cut(self, text: str, latest: int) -> int:
        places = [match.end() for match in CUT.finditer(text, latest - CUT_SEARCHED, latest)]
        for place in places[: -CUT_TRIES - 1 : -1]:
            left, right = text[place - CUT_CONTEXT : place], text[place : place + CUT_CONTEXT]
            if self.encode(left + right) == self.encode(left) + self.encode(right):
                return place
        return latest

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """The text; bytes that make no character come out as U+FFFD."""
        return self._inner.decode(ids, skip_special_tokens=False)

    def _find_end(self, origin: str) -> int:
        for token in KNOWN_ENDS:
            end = self._inner.token_to_id(token)
            if end is None:
                continue
            if any(end in self.encode(text) for text in (token, f"a{token}b", f" {token} ")):
                raise DataError(f'{origin}: {token} is not a special token, so text could spell it; set its "special" to true')
            return end
        raise DataError(f"{origin}: no end-of-text token; add {END_OF_TEXT} ({', '.join(KNOWN_ENDS[1:])} are known too)")


def _check_ids(contents: Any, path: Path) -> None:
    """The library counts up to the highest id. What is no tokenizer at all is left for it to say."""
    model = contents.get("model") if isinstance(contents, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = [number for number in vocabulary.values() if isinstance(number, int)] if isinstance(vocabulary, dict) else []
    if (highest := max(ids, default=0)) >= MOST_IDS:
        raise DataError(f"{path}: id {highest} in the vocabulary; {MOST_IDS:,} ids are the most")


def prepare_tokenizer(config: DataConfig, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer the configuration names; `texts` is read only to train a BPE of at most `vocab_size` ids (or of
    data.vocab_size, if set). The same texts give the same tokenizer, byte for byte. Raises ConfigError, DataError."""
    if config.tokenizer == "bpe":
        name = "data.vocab_size" if config.vocab_size else "model.vocab_size"
        size = config.vocab_size or vocab_size
        if size < FEWEST_BPE_TOKENS:
            raise ConfigError(f"{name}={size}: a byte-level BPE has at least {FEWEST_BPE_TOKENS} ids")
        return _train_bpe(texts, size)
    return _bytes() if config.tokenizer == "bytes" else Tokenizer.load(tokenizer_file(config))


def tokenizer_file(config: DataConfig) -> Path:
    """Where a given tokenizer.json lies."""
    return Path(os.path.expanduser(config.tokenizer))  # noqa: PTH111  (Path.expanduser raises RuntimeError for ~nobody)


def _train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    inner = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END_OF_TEXT], initial_alphabet=_alphabet(), show_progress=False
    )
    inner.train_from_iterator(sample(texts), trainer)
    return Tokenizer(inner, "bpe")


def sample(texts: Iterable[str], share: float = 1.0) -> list[str]:
    """What a BPE is trained on: every n-th piece of the texts, n a power of two found on the way, because a stream does not
    say how long it is; at most `share` of 10 million characters. A sample's sample is itself.

    The first 10 MB would not do: files come sorted, so they would be of one part of the source.
    """
    kept: list[str] = []
    stride, held = 1, 0
    for number, piece in enumerate(_sample_pieces(texts, share)):
        if number % stride:
            continue
        kept.append(piece)
        held += len(piece)
        if held > SAMPLE_CHARACTERS * share and len(kept) > 1:
            kept, stride = kept[::2], stride * 2
            held = sum(map(len, kept))
    return kept


def _sample_pieces(texts: Iterable[str], share: float) -> Iterator[str]:
    read = 0
    for text in texts:
        for start in range(0, len(text), SAMPLE_PIECE):
            yield text[start : start + SAMPLE_PIECE]
        read += len(text)
        if read >= SAMPLE_READ_CHARACTERS * share:
            return


def _bytes() -> Tokenizer:
    """A BPE without merges, so that one code path serves."""
    vocabulary = {END_OF_TEXT: 0} | {letter: index for index, letter in enumerate(_alphabet(), start=1)}
    inner = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
    inner.add_special_tokens([END_OF_TEXT])
    return Tokenizer(inner, "bytes")


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = by_words()
    inner.decoder = decoders.ByteLevel()
    return inner


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())
