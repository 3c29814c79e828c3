"""Tokenizers: a byte-level BPE trained on the sources, plain bytes, or a tokenizer.json.

All three are run by the `tokenizers` library.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moebius.config import DataConfig
from moebius.config.data import check_bpe
from moebius.config.paths import expanded
from moebius.data.hub import HUB_NAME, HUGGING_FACE, hub_tokenizer
from moebius.data.long_text import Text, parts_of
from moebius.data.messages import one_line
from moebius.data.sample import sample
from moebius.data.words import WordCache, by_words, splits_by_words
from moebius.errors import DataError, StorageError

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>")
"""Names of the end-of-text token in common tokenizers; the first that a tokenizer has is used."""
HIGHEST_NUM_IDS = 2**24

PIECE_CHARACTERS = 2**20
"""Most characters of a document that are tokenized at once."""
CUT_SEARCHED = 2**14
"""Number of characters before the end of the longest possible piece that are searched for a place
to cut."""
CUT_CONTEXT = 128
"""Number of characters on each side of a cut whose ids must be the same with and without it."""
CUT_TRIES = 8
"""Number of places to cut that are tried."""
SHOWN_BEFORE, SHOWN_AFTER = 20, 20
"""Characters before and after the first difference that a message about lost text shows."""
CUT = re.compile(r"\S(?=[ \n])")
"""Matches the character before a possible place to cut."""


class Tokenizer:
    """A tokenizer that converts text to token ids and back.

    `size` is the number of ids. `end_of_text` is the id of the separator between documents, which
    no text can produce: a text that spells the separator's name is tokenized as ordinary text.
    `is_lossless` means that any text is certainly decoded as it was; otherwise `first_loss` has to
    compare.
    """

    def __init__(self, inner: tokenizers.Tokenizer, origin: str):
        """Wrap a tokenizer of the library. `origin` names it in error messages.

        Raises DataError if it has no end-of-text token or text could produce that token.
        """
        # Without this a document whose text spells the end of text would end itself.
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        self._words = WordCache(self._encode_all) if splits_by_words(inner) else None
        self._wrong_byte = inner.token_to_id("<0xFF>")  # a byte that is in no character
        self.end_of_text = self._find_end_of_text(origin)
        self.is_lossless = _is_lossless(json.loads(inner.to_str()))
        self.size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Return the tokenizer in a tokenizer.json.

        Raises DataError if there is no such file or it is not a usable tokenizer.json, and
        StorageError if it cannot be read.
        """
        try:
            if not path.is_file():  # opening a pipe would wait for its other end
                raise DataError(
                    f"{path}: no such tokenizer file; data.tokenizer must be bpe, bytes, the path "
                    f"of a tokenizer.json, or hf:NAME{_hub_hint(str(path))}"
                )
            text = path.read_bytes().decode()
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: not a tokenizer.json: byte offset {error.start} is not UTF-8"
            ) from None
        try:
            # Parse with json first: its errors name a line, the library's only name Rust types.
            _check_ids(json.loads(text), path)
            return cls(tokenizers.Tokenizer.from_str(text), str(path))
        except DataError:
            raise
        except Exception as error:  # the library raises no narrower class
            raise DataError(f"{path}: not a tokenizer.json: {one_line(error)}") from None

    def save(self, path: Path) -> None:
        """Write the tokenizer as a tokenizer.json. Raises OSError."""
        path.write_bytes(self.to_json().encode())

    def to_json(self) -> str:
        """Return the contents of tokenizer.json."""
        return self._inner.to_str(pretty=False)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text as uint32. The ids are those of `encode`, but this is
        faster.
        """
        if self._words is not None:
            return self._words.encode(texts)
        return [np.array(ids, dtype=np.uint32) for ids in self._encode_all(texts)]

    def pieces(self, text: Text) -> Iterator[str]:
        """Yield the text in pieces of at most `PIECE_CHARACTERS`, to be encoded one at a time.

        This way, a text of any length is encoded in bounded memory. The text is cut before a space
        or a line break, at a place where the ids around it are the same with and without the cut;
        the pre-tokenizers of all common byte-level BPEs allow this. The ids of the pieces are then
        the ids of the text. They may differ around a cut only if no such place is found: in one
        endless word, or with a tokenizer that does not split text into words.
        """
        rest = ""
        for part in parts_of(text):
            rest += part
            while len(rest) >= PIECE_CHARACTERS + CUT_CONTEXT:
                stop = self._find_cut(rest)
                yield rest[:stop]
                rest = rest[stop:]
        while len(rest) > PIECE_CHARACTERS:
            stop = self._find_cut(rest)
            yield rest[:stop]
            rest = rest[stop:]
        yield rest

    def _find_cut(self, text: str) -> int:
        """Return the last good place for a cut up to `PIECE_CHARACTERS`, or that if there is none.

        The text is longer than that.
        """
        latest = PIECE_CHARACTERS
        places = [match.end() for match in CUT.finditer(text, latest - CUT_SEARCHED, latest)]
        for place in places[: -CUT_TRIES - 1 : -1]:
            left = text[max(0, place - CUT_CONTEXT) : place]
            right = text[place : place + CUT_CONTEXT]
            if self.encode(left + right) == self.encode(left) + self.encode(right):
                return place
        return latest

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        return [
            encoding.ids
            for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def decode(self, ids: list[int]) -> str:
        """Return the text of the ids. Bytes that are not valid UTF-8 become U+FFFD."""
        return self._inner.decode(ids, skip_special_tokens=False)

    def first_loss(self, texts: list[str], ids_of_texts: list[np.ndarray]) -> str:
        """Return what the first text that is not given back by its ids loses, or "".

        The result quotes the text and what it becomes, from where they differ.
        """
        if self.is_lossless:
            return ""
        decoded = self._inner.decode_batch(
            [ids.tolist() for ids in ids_of_texts], skip_special_tokens=False
        )
        for text, becomes in zip(texts, decoded, strict=True):
            if text != becomes:
                pairs = enumerate(zip(text, becomes, strict=False))
                shorter = min(len(text), len(becomes))
                place = next((n for n, (one, two) in pairs if one != two), shorter)
                start = max(0, place - SHOWN_BEFORE)
                shown, instead = (part[start : place + SHOWN_AFTER] for part in (text, becomes))
                return f"{shown!r} becomes {instead!r}"
        return ""

    def decode_settled(self, ids: list[int]) -> str:
        """Return the beginning of the text of the ids that later ids cannot change.

        An unfinished character at the end is left out. So is a run of byte tokens: the library
        decodes such a run as a whole, and one wrong byte at its end makes all of it U+FFFD.
        """
        text = self.decode(ids)
        if self._wrong_byte is not None:
            pairs = zip(text, self.decode([*ids, self._wrong_byte]), strict=False)
            text = "".join(old for old, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return text.rstrip("\ufffd")

    def _find_end_of_text(self, origin: str) -> int:
        for token in KNOWN_ENDS:
            token_id = self._inner.token_to_id(token)
            if token_id is None:
                continue
            if any(token_id in self.encode(text) for text in (token, f"a{token}b", f" {token} ")):
                raise DataError(
                    f"{origin}: {token} is not a special token, so text could spell it; "
                    'set its "special" to true'
                )
            return token_id
        raise DataError(
            f"{origin}: no end-of-text token; add {END_OF_TEXT} "
            f"({', '.join(KNOWN_ENDS[1:])} are known too)"
        )


def _is_lossless(contents: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json is certainly one that gives any text back.

    It then is a BPE on bytes that changes nothing before it: every byte has an id, and the words
    that the text is split into are all of the text.
    """
    model, splitter = contents["model"], contents["pre_tokenizer"] or {}
    parts = splitter.get("pretokenizers", [splitter])
    return (
        contents["normalizer"] is None
        and model["type"] == "BPE"
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and set(_alphabet()) <= set(model["vocab"])
        and parts[-1].get("type") == "ByteLevel"
        and parts[-1].get("add_prefix_space") is False
        and all(
            part["type"] == "Digits" or (part["type"] == "Split" and part["behavior"] != "Removed")
            for part in parts[:-1]
        )
        and (contents["decoder"] or {}).get("type") == "ByteLevel"
        and all(token["special"] for token in contents["added_tokens"])
    )


def _check_ids(contents: Any, path: Path) -> None:
    """Raise DataError if an id in the contents of a tokenizer.json is too high.

    The library allocates memory for every number up to the highest id. Contents that are not a
    tokenizer at all are left for the library to refuse.
    """
    model = contents.get("model") if isinstance(contents, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return
    highest = max((id_ for id_ in vocabulary.values() if isinstance(id_, int)), default=0)
    if highest >= HIGHEST_NUM_IDS:
        raise DataError(
            f"{path}: has id {highest}, but a vocabulary may have at most {HIGHEST_NUM_IDS:,} ids"
        )


def prepare_tokenizer(config: DataConfig, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer that the configuration names.

    `texts` is only read to train a BPE. The BPE has data.vocab_size ids, or `vocab_size` ids if
    that setting is 0, or fewer if the text is short. The same texts give the same tokenizer, byte
    for byte. Raises ConfigError for too few or too many ids, and DataError and StorageError like
    `Tokenizer.load`.
    """
    if config.tokenizer == "bpe":
        size = config.vocab_size or vocab_size
        check_bpe("model.vocab_size", size)
        return _train_bpe(texts, size)
    return _bytes() if config.tokenizer == "bytes" else Tokenizer.load(tokenizer_file(config))


def tokenizer_file(config: DataConfig) -> Path:
    """Return the path of the tokenizer.json, which is downloaded if it is on the hub.

    data.tokenizer must be neither bpe nor bytes. Raises DataError like `hub_tokenizer`.
    """
    if config.tokenizer.startswith(HUGGING_FACE):
        return hub_tokenizer(config.tokenizer)
    return expanded(config.tokenizer)


def _hub_hint(path: str) -> str:
    """Return what a path that is no tokenizer file may have meant, as the end of an error."""
    if Path(path, "tokenizer.json").is_file():
        return f"; did you mean {path}/tokenizer.json?"
    is_name = HUB_NAME.fullmatch(path) and not path.endswith(".json")
    return f"; did you mean hf:{path}?" if is_name else ""


def _train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    inner = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(sample(texts), trainer)
    return Tokenizer(inner, "bpe")


def _bytes() -> Tokenizer:
    """Return a BPE without merges, whose ids are bytes, so that bytes need no separate code."""
    vocabulary = {END_OF_TEXT: 0} | {
        letter: index for index, letter in enumerate(_alphabet(), start=1)
    }
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
