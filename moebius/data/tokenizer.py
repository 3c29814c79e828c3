"""Tokenizers: byte-level BPE trained on the source, raw bytes, or a given tokenizer.json; all run by `tokenizers`."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moebius.config import DataConfig
from moebius.errors import ConfigError, DataError, StorageError

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>")
SAMPLE_CHARACTERS = 10_000_000  # merges hardly change beyond it, training time grows with it
SAMPLE_READ_CHARACTERS = 1_000_000_000  # what is read to choose them from: a first pass over terabytes would take days
SAMPLE_PIECE = 8_000  # characters taken in one place: few, so that no long document outweighs the others
FEWEST_BPE_TOKENS = 257  # 256 bytes and the end of text


class Tokenizer:
    """Text to ids and back. `end_of_text` separates documents; no text can spell it. `size`: number of ids."""

    def __init__(self, inner: tokenizers.Tokenizer, origin: str):
        # text that spells a special token is text, or a document could end itself
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        self.end_of_text = self._find_end(origin)
        self.size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Raises DataError if the file is missing or is no tokenizer.json, StorageError if it may not be read."""
        try:
            text = path.read_bytes().decode()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise DataError(f"{path}: no such tokenizer file; data.tokenizer is bpe, bytes or a tokenizer.json") from None
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a tokenizer.json: byte offset {error.start} is not UTF-8") from None
        try:
            json.loads(text)  # its errors name a line; those of the Rust side are about its own types
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

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """The text; bytes that make no character come out as U+FFFD."""
        return self._inner.decode(ids, skip_special_tokens=False)

    def _find_end(self, origin: str) -> int:
        for token in KNOWN_ENDS:
            end = self._inner.token_to_id(token)
            if end is None:
                continue
            if end in itertools.chain(*self.encode_batch([token, f"a{token}b", f" {token} "])):
                raise DataError(f'{origin}: {token} is not a special token, so text could spell it; set its "special" to true')
            return end
        raise DataError(f"{origin}: no end-of-text token; add {END_OF_TEXT} ({', '.join(KNOWN_ENDS[1:])} are known too)")


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
    inner = _byte_level(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END_OF_TEXT], initial_alphabet=_alphabet(), show_progress=False
    )
    inner.train_from_iterator(_sample(texts), trainer)
    return Tokenizer(inner, "bpe")


def _sample(texts: Iterable[str]) -> list[str]:
    """Every n-th piece of the text, n a power of two found on the way, because a stream does not say how long it is.

    The first 10 MB would not do: files come sorted, so they would be of one part of the source.
    """
    kept: list[str] = []
    stride, held = 1, 0
    for number, piece in enumerate(_sample_pieces(texts)):
        if number % stride:
            continue
        kept.append(piece)
        held += len(piece)
        if held > SAMPLE_CHARACTERS and len(kept) > 1:
            kept, stride = kept[::2], stride * 2
            held = sum(map(len, kept))
    return kept


def _sample_pieces(texts: Iterable[str]) -> Iterator[str]:
    read = 0
    for text in texts:
        for start in range(0, len(text), SAMPLE_PIECE):
            yield text[start : start + SAMPLE_PIECE]
        read += len(text)
        if read >= SAMPLE_READ_CHARACTERS:
            return


def _bytes() -> Tokenizer:
    """A BPE without merges, so that one code path serves."""
    vocabulary = {END_OF_TEXT: 0} | {letter: index for index, letter in enumerate(_alphabet(), start=1)}
    model = models.BPE(vocab=vocabulary, merges=[])
    inner = _byte_level(model, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    inner.add_special_tokens([END_OF_TEXT])
    return Tokenizer(inner, "bytes")


def _byte_level(model: models.BPE, pre_tokenizer: pre_tokenizers.ByteLevel) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizer
    inner.decoder = decoders.ByteLevel()
    return inner


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())
