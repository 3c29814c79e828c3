"""Tokenizers: byte-level BPE trained on the source, raw bytes, or a given tokenizer.json; all run by `tokenizers`."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moebius.config import DataConfig
from moebius.errors import ConfigError, DataError

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>")
BPE_SAMPLE_BYTES = 10_000_000  # merges hardly change beyond it, training time grows with it
BPE_PIECE_BYTES = 20_000  # of one document: the sample is spread over many
FEWEST_BPE_TOKENS = 257  # 256 bytes and the end of text


class Tokenizer:
    """Text to ids and back. `end_of_text` separates documents; no text can spell it."""

    def __init__(self, inner: tokenizers.Tokenizer, origin: str):
        ids = [inner.token_to_id(token) for token in KNOWN_ENDS]
        known = [number for number in ids if number is not None]
        if not known:
            raise DataError(f"{origin}: no end-of-text token; one of {', '.join(KNOWN_ENDS)} is wanted")
        # text that spells a special token is text, or a document could end itself
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        self.end_of_text: int = known[0]
        self.size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Raises DataError if the file is missing or is no tokenizer.json."""
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: byte offset {error.start} is not UTF-8") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, origin: str) -> "Tokenizer":
        """A tokenizer from the text of a tokenizer.json."""
        try:
            json.loads(text)
            return cls(tokenizers.Tokenizer.from_str(text), origin)
        except DataError:
            raise
        except Exception as error:  # the Rust side raises bare Exception
            raise DataError(f"{origin}: not a tokenizer.json: {' '.join(str(error).split())[:200]}") from None

    def to_json(self) -> str:
        """The contents of tokenizer.json."""
        return self._inner.to_str(pretty=False)

    def save(self, path: Path) -> None:
        path.write_text(self.to_json())

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """On all cores."""
        return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self._inner.decode(ids, skip_special_tokens=False)


def prepare_tokenizer(config: DataConfig, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer the configuration names; `texts` is read only to train a BPE of at most `vocab_size` ids."""
    if config.tokenizer == "bpe":
        return _train_bpe(texts, config.vocab_size or vocab_size)
    return _bytes() if config.tokenizer == "bytes" else Tokenizer.load(Path(config.tokenizer).expanduser())


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    if vocab_size < FEWEST_BPE_TOKENS:
        raise ConfigError(f"data.vocab_size={vocab_size}: a byte-level BPE has at least {FEWEST_BPE_TOKENS} ids")
    inner = _byte_level(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_sample(texts), trainer)
    return Tokenizer(inner, "bpe")


def _sample(texts: Iterable[str]) -> Iterator[str]:
    remaining = BPE_SAMPLE_BYTES
    for text in texts:
        if remaining <= 0:
            return
        piece = text[:BPE_PIECE_BYTES]
        remaining -= len(piece)
        yield piece


def _bytes() -> Tokenizer:
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
