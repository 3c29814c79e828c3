"""Generated text, from models whose next token is known beforehand."""

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from moebius.config import DataConfig, ModelConfig
from moebius.data import Tokenizer
from moebius.data.tokenizer import prepare_tokenizer
from moebius.errors import ConfigError, NumericError
from moebius.infer.decoder import Recomputing
from moebius.infer.generate import Piece, Request, generate, write
from moebius.infer.sampling import Sampling
from moebius.model.transformer import Transformer, seeded
from tests.infer import reference


class Logits(NamedTuple):
    """The part of a model's output that generation reads."""

    logits_BSV: Tensor


class Recited(nn.Module):
    """A model that predicts the tokens of a script in turn, and records the windows it gets."""

    def __init__(self, script: list[int], vocab_size: int):
        super().__init__()
        self.embedding = nn.Embedding(1, 1)
        self.script = itertools.chain(script, itertools.repeat(script[-1]))
        self.vocab_size = vocab_size
        self.windows: list[list[int]] = []

    def forward(self, tokens_BS: Tensor) -> Logits:
        self.windows.append(tokens_BS[0].tolist())
        logits_BSV = torch.zeros(*tokens_BS.shape, self.vocab_size)
        logits_BSV[0, -1, next(self.script)] = 50.0
        logits_BSV[0, -1, 257:] = 100.0  # rows of a padded vocabulary, likelier than any token
        return Logits(logits_BSV)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])


def recite(
    text: str | bytes,
    tokenizer: Tokenizer,
    end: bool = True,
    max_tokens: int = 100,
    **options: Any,
):
    """Return the generated pieces if the model recites this text, and the model."""
    data = text.encode() if isinstance(text, str) else text
    ids = {bytes_of(tokenizer, id): id for id in range(1, 257)}
    script = [ids[bytes([byte])] for byte in data] + ([tokenizer.end_of_text] if end else [])
    model: Any = Recited(script, vocab_size=320)
    options = {"prompt": "", "context": 64} | options
    return list(reference.generate(model, tokenizer, max_tokens=max_tokens, **options)), model


def bytes_of(tokenizer: Tokenizer, id: int) -> bytes:
    """Return the byte that a token of a byte-level vocabulary stands for.

    Printable bytes are their own letters; the others have letters from U+0100 on.
    """
    letter = ord(tokenizer._inner.id_to_token(id) or "")
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return bytes([letter if letter in printable else others[letter - 0x100]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_ends_before_the_end_of_text_token(temperature, tokenizer):
    pieces, model = recite("abc", tokenizer, temperature=temperature)
    assert pieces == ["a", "b", "c"]
    assert len(model.windows) == 4
    assert recite("", tokenizer, temperature=temperature)[0] == []


def test_the_text_has_at_most_max_tokens(tokenizer):
    assert recite("abcdef", tokenizer, max_tokens=3)[0] == ["a", "b", "c"]
    assert recite("abcdef", tokenizer, max_tokens=0)[0] == []


def test_a_character_of_several_tokens_comes_out_whole(tokenizer):
    pieces, _ = recite("aé中😀b", tokenizer)
    assert pieces == ["a", "é", "中", "😀", "b"]


def test_half_a_character_is_never_shown(tokenizer):
    assert recite("é", tokenizer, max_tokens=1)[0] == []
    assert recite("a😀", tokenizer, max_tokens=4)[0] == ["a"]
    assert recite("a😀", tokenizer, max_tokens=5)[0] == ["a", "😀"]


def test_bytes_that_make_no_character_do_not_stop_the_text(tokenizer):
    pieces, _ = recite(b"a\xff\x80b", tokenizer)
    assert "".join(pieces) == "a\ufffd\ufffdb"
    assert "".join(recite(b"a\xff", tokenizer)[0]) == "a\ufffd"


def test_ids_past_the_tokenizer_are_never_written(tokenizer):
    """The model gives its 63 padding rows the highest logits."""
    assert "".join(recite("hello", tokenizer, temperature=0)[0]) == "hello"
    # At this temperature, tokens are drawn almost uniformly.
    assert "".join(recite("hello", tokenizer, temperature=5.0, max_tokens=5, end=False)[0])


def test_the_prompt_follows_a_document_start_and_the_older_half_is_forgotten(tokenizer):
    _, model = recite("abcdef", tokenizer, prompt="xy", context=4)
    assert model.windows[0] == [tokenizer.end_of_text, *tokenizer.encode("xy")]
    assert model.windows[1] == [tokenizer.end_of_text, *tokenizer.encode("xya")]
    assert model.windows[2] == tokenizer.encode("yab")
    assert model.windows[3] == tokenizer.encode("yabc")
    assert model.windows[-1] == tokenizer.encode("bcdef"[1:])[-len(model.windows[-1]) :]
    _, model = recite("a", tokenizer, prompt="a long prompt", context=4)
    assert model.windows[0] == tokenizer.encode("ompt")


@pytest.fixture(scope="module")
def untrained() -> Transformer:
    """A small model with random weights."""
    config = ModelConfig(
        vocab_size=257, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, num_experts=3
    )
    return seeded(0, config).eval()


def test_temperature_0_takes_the_likeliest_token(untrained, tokenizer):
    text = "".join(generate(untrained, tokenizer, "ab", max_tokens=6, context=9, temperature=0))
    tokens = [tokenizer.end_of_text, *tokenizer.encode("ab")]
    with torch.no_grad():
        for _ in range(6):
            following = int(untrained(torch.tensor([tokens])).logits_BSV[0, -1].argmax())
            if following == tokenizer.end_of_text:
                break
            tokens.append(following)
    assert text == tokenizer.decode(tokens[3:]).rstrip("\ufffd")


@pytest.mark.parametrize("temperature", [1e-7, 1e-38, 1e-39, 1e-45, 1e-310, 5e-324])
def test_a_temperature_of_almost_0_takes_the_likeliest_token(temperature, untrained, tokenizer):
    options: Any = {"prompt": "ab", "max_tokens": 12, "context": 8}
    greedy = "".join(generate(untrained, tokenizer, temperature=0, **options))
    for seed in (1, 2):
        drawn = generate(untrained, tokenizer, temperature=temperature, seed=seed, **options)
        assert "".join(drawn) == greedy


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
@pytest.mark.parametrize("temperature", [1e-6, 1e-5, 0.01, 1.0, 1e30, 1e38, 1e300, 1.7e308])
def test_no_temperature_overflows(temperature, scale, tokenizer):
    class Scaled(Recited):
        """A model with logits of very different sizes, 3 * `scale` at most."""

        def forward(self, tokens_BS: Tensor) -> Logits:
            logits_V = torch.linspace(-3, 3, 257) * scale
            return Logits(logits_V.expand(*tokens_BS.shape, 257).clone())

    model: Any = Scaled([1], vocab_size=257)
    text = "".join(reference.generate(model, tokenizer, "", 40, 4, temperature))
    last = tokenizer.decode([256])
    if temperature <= 0.01 and scale == 1.0:
        assert set(text) <= {last, tokenizer.decode([255]), tokenizer.decode([254]), "\ufffd"}
    if temperature >= 1e30 and scale == 1.0:
        assert len(set(text)) > 10


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("logit", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_one_line(logit, temperature, tokenizer):
    class Broken(Recited):
        """A model whose weights are damaged."""

        def forward(self, tokens_BS: Tensor) -> Logits:
            return Logits(torch.full((*tokens_BS.shape, self.vocab_size), logit))

    model: Any = Broken([1], vocab_size=257)
    with pytest.raises(NumericError, match=f"highest logit is {logit}"):
        list(reference.generate(model, tokenizer, "", 3, context=4, temperature=temperature))


def test_sampling_follows_the_probabilities(tokenizer):
    class Biased(Recited):
        """A model with logits of 0 for `a` and 1 for `b`, and no other tokens."""

        def forward(self, tokens_BS: Tensor) -> Logits:
            logits_BSV = torch.full((*tokens_BS.shape, self.vocab_size), -torch.inf)
            logits_BSV[..., tokenizer.encode("a")[0]] = 0.0
            logits_BSV[..., tokenizer.encode("b")[0]] = 1.0
            return Logits(logits_BSV)

    def share_of_b(temperature: float) -> float:
        model: Any = Biased([1], vocab_size=257)
        text = "".join(reference.generate(model, tokenizer, "", 400, 1, temperature))
        assert len(text) == 400 and set(text) <= {"a", "b"}
        return text.count("b") / 400

    # The probability is sigmoid(1 / temperature). The margin is 4 standard deviations of 400
    # draws.
    assert share_of_b(1.0) == pytest.approx(0.731, abs=0.09)
    assert share_of_b(0.5) == pytest.approx(0.881, abs=0.07)


def test_a_seed_is_a_text_and_moves_no_other_generator(untrained, tokenizer):
    before = torch.get_rng_state()
    texts = [
        "".join(generate(untrained, tokenizer, "ab", 20, context=16, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.get_rng_state())


def written(script: str, tokenizer: Tokenizer, **request: Any) -> list[Piece]:
    """Return the pieces of texts by a model that recites the script over and over."""
    ids = tokenizer.encode(script)
    model: Any = Recited(ids * 100, vocab_size=320)
    sampling = Sampling(temperature=0)
    decoder = Recomputing(model, torch.device("cpu"), tokenizer.size, 64, sampling)
    is_streamed = request.pop("is_streamed", True)
    asked = Request(sampling=sampling, **request)
    return list(write(decoder, tokenizer, [[], tokenizer.encode("xy")], asked, 1, is_streamed))


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize(
    ("stop", "text", "end"),
    [
        (("lo wo",), "hel", "stop"),
        (("rld", "wor"), "hello ", "stop"),  # the one that is complete first
        (("world", "or"), "hello w", "stop"),
        (("never",), "hello world!", "length"),
        (("!h",), "hello world", "stop"),
        (("h",), "", "stop"),
        ((), "hello world!", "length"),
    ],
)
def test_a_text_ends_before_a_stop_string(stop, text, end, is_streamed, tokenizer):
    max_tokens = 13 if stop == ("!h",) else 12
    pieces = written(
        "hello world!", tokenizer, stop=stop, max_tokens=max_tokens, is_streamed=is_streamed
    )
    first = [piece for piece in pieces if piece.number == 0]
    assert "".join(piece.text for piece in first) == text
    assert [piece.end for piece in first if piece.end] == [end] == [first[-1].end]
    assert is_streamed or len(first) == 1


def test_what_may_become_a_stop_string_is_held_back(tokenizer):
    pieces = written("aab", tokenizer, stop=("aac",), max_tokens=5)
    assert [piece.text for piece in pieces if piece.number == 0] == ["aab", "aa"]


def test_each_prompt_has_its_texts_and_a_count_of_tokens(tokenizer):
    pieces = written("abc", tokenizer, num=2, max_tokens=3, is_streamed=False)
    assert [piece.number for piece in pieces] == [0, 1, 2, 3]
    assert {(piece.text, piece.num_tokens, piece.end) for piece in pieces} == {
        ("abc", 3, "length")
    }


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": -1}, {"seed": -1}, {"seed": 2**63}, {"stop": ("a", "")}, {"num": 0}],
)
def test_requests_that_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}="):
        Request(**wrong)
