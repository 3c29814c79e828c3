"""Generated pieces join to the text that the tokenizer itself gives, for every kind of tokenizer.

Each decoder has its own rules for spaces, word parts and bytes, and some of them look back.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn

from moebius.config import DataConfig
from moebius.data import Tokenizer
from moebius.data.tokenizer import prepare_tokenizer
from tests.infer.reference import generate
from tests.infer.test_generate import Logits

END = "</s>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class Recited(nn.Module):
    """A model that predicts the tokens of a script in turn."""

    def __init__(self, script: list[int], vocab_size: int):
        super().__init__()
        self.embedding = nn.Embedding(1, 1)
        self.script = iter(script)
        self.vocab_size = vocab_size

    def forward(self, tokens_BS: Tensor) -> Logits:
        logits_BSV = torch.zeros(*tokens_BS.shape, self.vocab_size)
        logits_BSV[0, -1, next(self.script)] = 50.0
        return Logits(logits_BSV)


def wrapped(model: Any, **parts: Any) -> Tokenizer:
    """Return a tokenizer of the library with these parts and an end-of-text token."""
    inner = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(inner, name, part)
    inner.add_special_tokens([END, "<|im_start|>"])
    return Tokenizer(inner, "test")


def vocabulary(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(["<unk>", *tokens])}


def metaspace(**options: Any) -> Tokenizer:
    """Return a tokenizer of whole words, whose tokens begin with a mark for the space."""
    words = vocabulary("▁the", "▁cat", "▁song", "s", "▁", "▁s", "é", "the")
    scores = [(token, -1.0) for token in words]
    return wrapped(
        models.Unigram(scores, unk_id=0),
        pre_tokenizer=pre_tokenizers.Metaspace(**options),
        decoder=decoders.Metaspace(**options),
    )


def word_piece(cleanup: bool) -> Tokenizer:
    words = vocabulary("the", "cat", "##s", "song", "##ing", ",", ".", "n't", "'", "do", "é")
    return wrapped(
        models.WordPiece(words, unk_token="<unk>"),
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(cleanup=cleanup),
    )


def byte_fallback() -> Tokenizer:
    """Return a tokenizer like Llama 2's: what is no token is spelled as bytes."""
    words = vocabulary(*BYTES, "▁", "t", "h", "e", "s", "th", "the", "▁the", "c", "a", "�")
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    return wrapped(
        models.BPE(words, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    )


def suffixes() -> Tokenizer:
    """Return a BPE that marks the ends of words, whose last word therefore has no space."""
    words = vocabulary("t", "h", "e", "e</w>", "s</w>", "the</w>", "cat</w>", "c", "a", "t</w>")
    return wrapped(
        models.BPE(words, [], unk_token="<unk>", end_of_word_suffix="</w>"),
        pre_tokenizer=pre_tokenizers.Whitespace(),
        decoder=decoders.BPEDecoder(),
    )


def words_only() -> Tokenizer:
    """Return a tokenizer without a decoder, whose tokens are joined with spaces."""
    return wrapped(
        models.WordLevel(vocabulary("the", "cat", "songs"), unk_token="<unk>"),
        pre_tokenizer=pre_tokenizers.Whitespace(),
    )


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, []),
    "bpe": lambda: prepare_tokenizer(DataConfig(), 300, ["the cat sings, é 漢字 😀 " * 20]),
    "metaspace": metaspace,
    "metaspace, first": lambda: metaspace(prepend_scheme="first"),
    "metaspace, never": lambda: metaspace(prepend_scheme="never"),
    "word pieces": lambda: word_piece(cleanup=True),
    "word pieces, no cleanup": lambda: word_piece(cleanup=False),
    "byte fallback": byte_fallback,
    "suffixes": suffixes,
    "words": words_only,
}
PROMPTS = ["", "the cat", "the ca", "the ", "The CAT, 漢 é", "é", "a�"]


def recite(tokenizer: Tokenizer, prompt: str, script: list[int], **options: Any) -> list[str]:
    """Return the pieces that a model writes if its tokens are those of the script."""
    model: Any = Recited(script, vocab_size=tokenizer.size)
    options = {"max_tokens": 100, "context": 64, "temperature": 0} | options
    return list(generate(model, tokenizer, prompt, **options))


def test_words_of_a_metaspace_tokenizer_keep_their_spaces():
    tokenizer = metaspace()
    script = [*tokenizer.encode("songs"), tokenizer.end_of_text]
    assert "".join(recite(tokenizer, "the cat", script)) == " songs"
    assert "".join(recite(tokenizer, "", script)) == "songs"


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_join_to_what_the_tokenizer_decodes(kind, prompt):
    tokenizer = KINDS[kind]()
    prompt_ids = tokenizer.encode(prompt)
    before = tokenizer.decode(prompt_ids)
    drawn = random.Random(f"{kind}{prompt}")
    texts = ["songs the cat", "é 漢字 😀 the", "do n't , the <|im_start|> s", "s", "ing"]
    scripts = [tokenizer.encode(text) for text in texts]
    ids = [id for id in range(tokenizer.size) if id != tokenizer.end_of_text]
    scripts += [drawn.choices(ids, k=drawn.randrange(1, 20)) for _ in range(12)]
    for script in scripts:
        whole = tokenizer.decode([*prompt_ids, *script])
        written = "".join(recite(tokenizer, prompt, [*script, tokenizer.end_of_text]))
        if whole.startswith(before):
            assert before + written == whole, (script, whole)
        else:  # wrong bytes right after those of the prompt
            assert kind == "byte fallback"
            assert written == tokenizer.decode(script)
        cut = "".join(recite(tokenizer, prompt, script, max_tokens=len(script)))
        assert cut == written.rstrip("�")


@pytest.mark.parametrize("kind", ["bytes", "bpe", "byte fallback"])
def test_no_piece_has_half_a_character(kind):
    tokenizer = KINDS[kind]()
    script = tokenizer.encode("é the 漢字 😀")
    pieces = recite(tokenizer, "the", [*script, tokenizer.end_of_text])
    assert len(pieces) > 2 and not any("�" in piece for piece in pieces)
    for number in range(len(script)):
        assert "�" not in "".join(recite(tokenizer, "the", script, max_tokens=number))


def test_a_special_token_is_shown():
    """A model that writes one has learned something that its owner should see."""
    tokenizer = metaspace()
    script = [tokenizer.size - 1, *tokenizer.encode("cat"), tokenizer.end_of_text]
    assert "".join(recite(tokenizer, "the", script)) == "<|im_start|> cat"
