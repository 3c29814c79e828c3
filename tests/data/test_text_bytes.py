"""The bytes that tokens stand for are those of the text, wherever a window is cut out of it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from moebius.config import DataConfig
from moebius.data.text_bytes import TextBytes
from moebius.data.tokenizer import END_OF_TEXT, Tokenizer, prepare_tokenizer

TEXTS = ["the cat sat", "naïve café 東京", "a", "  two  spaces ", "the 🐈 sat\n\nthere"] * 3
CHARACTERS = sorted(set("".join(TEXTS)))


def byte_level(kind: str) -> Tokenizer:
    return prepare_tokenizer(DataConfig(tokenizer=kind), 300, TEXTS)


def byte_level_with_added_tokens() -> Tokenizer:
    """Return a byte-level BPE with tokens that stand for themselves, and an added é."""
    inner = tokenizers.Tokenizer.from_str(byte_level("bpe").to_json())
    inner.add_tokens(["\n\n", "東京", "sat"])
    return Tokenizer(inner, "added")


def sentence_piece(decoder: decoders.Decoder) -> Tokenizer:
    """Return a Unigram with byte fallback, as of a SentencePiece model; ï and 🐈 are bytes."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "at"]
    names += [letter for letter in CHARACTERS if letter not in " ï🐈"]
    vocabulary = [(name, -1.0 - 0.1 * (len(name) == 1)) for name in names]
    inner = tokenizers.Tokenizer(models.Unigram(vocabulary, 0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoder
    inner.add_special_tokens([END_OF_TEXT])
    return Tokenizer(inner, "sentence piece")


def llama() -> Tokenizer:
    parts = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    return sentence_piece(decoders.Sequence(parts))


def metaspace() -> Tokenizer:
    return sentence_piece(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]))


def word_pieces() -> Tokenizer:
    """Return a WordPiece tokenizer, which gives texts of single spaces back."""
    names = ["[UNK]", "the", "c", "s", "##at", "there", "a", "sat"]
    vocabulary = {name: number for number, name in enumerate(names)}
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens([END_OF_TEXT])
    return Tokenizer(inner, "word pieces")


TOKENIZERS = {
    "bytes": lambda: byte_level("bytes"),
    "bpe": lambda: byte_level("bpe"),
    "added tokens": byte_level_with_added_tokens,
    "llama": llama,
    "metaspace": metaspace,
    "word pieces": word_pieces,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> Tokenizer:
    return TOKENIZERS[request.param]()


def stream_of(tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """Return texts as they are stored, each after a separator, and the number of their bytes."""
    texts = [text for text in TEXTS if tokenizer.decode(tokenizer.encode(text)) == text]
    ids = [number for text in texts for number in (tokenizer.end_of_text, *tokenizer.encode(text))]
    assert len(texts) >= 6
    return np.array(ids), sum(len(text.encode()) for text in texts)


def test_the_bytes_of_documents_are_those_of_their_text(tokenizer):
    tokens, num_bytes = stream_of(tokenizer)
    assert TextBytes(tokenizer).count(tokens) == num_bytes


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 50])
def test_windows_without_gaps_add_up_wherever_the_text_is_cut(tokenizer, length):
    tokens, num_bytes = stream_of(tokenizer)
    counter = TextBytes(tokenizer)
    windows = [tokens[start : start + length + 1] for start in range(0, len(tokens) - 1, length)]
    assert sum(counter.count(window) for window in windows) == num_bytes


def test_random_cuts_of_characters_of_all_kinds():
    generator = random.Random(0)
    text = "".join(chr(generator.randrange(32, 0xD000)) for _ in range(500))
    tokenizer = byte_level("bpe")
    tokens = np.array([tokenizer.end_of_text, *tokenizer.encode(text)])
    counter = TextBytes(tokenizer)
    for _ in range(20):
        cut = generator.randrange(1, len(tokens))
        total = counter.count(tokens[: cut + 1]) + counter.count(tokens[cut:])
        assert total == len(text.encode())


def test_special_tokens_stand_for_no_text(tokenizer):
    tokens, num_bytes = stream_of(tokenizer)
    end = [tokenizer.end_of_text]
    assert TextBytes(tokenizer).count(np.concatenate([tokens, end, end])) == num_bytes


def test_a_template_that_adds_tokens_does_not_matter(tmp_path: Path):
    """Tokenizers of chat models have post-processors, which are not used."""
    inner = tokenizers.Tokenizer.from_str(byte_level("bpe").to_json())
    inner.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    tokens, num_bytes = stream_of(loaded)
    assert TextBytes(loaded).count(tokens) == num_bytes
    assert json.loads(loaded.to_json())["post_processor"] is not None
