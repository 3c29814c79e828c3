"""Tokenizers are lossless and deterministic, and no text can spell the end of a document."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from moebius.config import DataConfig
from moebius.data import tokenizer as tokenizer_module
from moebius.data.tokenizer import END_OF_TEXT, Tokenizer, prepare_tokenizer
from moebius.errors import ConfigError, DataError

SENTENCES = [
    f"def function_{number}(argument):\n    return argument + {number}\n" for number in range(200)
]


def tokenizer(kind: str = "bpe", vocab_size: int = 400) -> Tokenizer:
    return prepare_tokenizer(DataConfig(tokenizer=kind), vocab_size, SENTENCES)


def random_text(generator: random.Random) -> str:
    """Return characters of all kinds that UTF-8 can store.

    They include control characters, combining marks and characters above U+FFFF, but no
    surrogates.
    """
    ranges = [(0, 128), (0, 0x3000), (0xE000, 0x10FFFF), (0x300, 0x370), (32, 33)]
    return "".join(
        chr(generator.randrange(*generator.choice(ranges))) for _ in range(generator.randrange(60))
    ).replace(END_OF_TEXT, "")


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_any_text_is_decoded_as_it_was(kind):
    lossless = tokenizer(kind)
    generator = random.Random(0)
    samples = [random_text(generator) for _ in range(500)]
    samples += ["", " ", "  \n\t ", "\r\n", "\0", "\ufeffx", "a" * 5000, *SENTENCES[:3]]
    for text, ids in zip(samples, lossless.encode_batch(samples), strict=True):
        assert lossless.decode(ids.tolist()) == text
        assert ids.tolist() == lossless.encode(text)
        assert all(0 <= number < lossless.size for number in ids)


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_text_that_spells_the_end_of_text_does_not_become_it(kind, tmp_path):
    new = tokenizer(kind)
    new.save(tmp_path / "tokenizer.json")
    for safe in (new, Tokenizer.load(tmp_path / "tokenizer.json")):
        for text in (END_OF_TEXT, f"a{END_OF_TEXT}b", f" {END_OF_TEXT}\n"):
            assert safe.end_of_text not in safe.encode(text)
            assert safe.end_of_text not in safe.encode_batch([text])[0]
            assert safe.decode(safe.encode(text)) == text
        assert safe.decode([safe.end_of_text]) == END_OF_TEXT


def test_bytes_has_one_id_per_byte():
    by_bytes = tokenizer("bytes", 257)
    assert by_bytes.size == 257
    assert len(by_bytes.encode("aé€𝄞")) == 1 + 2 + 3 + 4


def test_bpe_compresses_and_keeps_to_its_size():
    bpe = tokenizer()
    assert 257 < bpe.size <= 400
    text = "".join(SENTENCES)
    assert len(bpe.encode(text)) < len(text) / 2
    assert prepare_tokenizer(DataConfig(vocab_size=300), 400, SENTENCES).size == 300


def test_a_vocabulary_that_is_too_small_names_the_field_that_was_set():
    with pytest.raises(ConfigError, match=r"^model\.vocab_size=256: "):
        tokenizer("bpe", 256)
    with pytest.raises(ConfigError, match=r"^data\.vocab_size=100: "):
        prepare_tokenizer(DataConfig(vocab_size=100), 400, SENTENCES)


def test_the_same_text_gives_the_same_bytes_in_another_process():
    program = (
        "import sys\n"
        "from moebius.config import DataConfig\n"
        "from moebius.data.tokenizer import prepare_tokenizer\n"
        "line = 'def function_{0}(argument):\\n    return argument + {0}\\n'\n"
        "texts = [line.format(n) for n in range(200)]\n"
        "sys.stdout.write(prepare_tokenizer(DataConfig(), 400, texts).to_json())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.decode() == tokenizer().to_json()


def by_gpt2_words() -> Tokenizer:
    """Return a tokenizer with the library's own pre-tokenizer, which has no word cache."""
    inner = tokenizers.Tokenizer.from_str(tokenizer().to_json())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(inner, "by_gpt2_words")


@pytest.mark.parametrize("new_tokenizer", [tokenizer, by_gpt2_words])
def test_pieces_of_a_long_text_have_its_ids(monkeypatch, new_tokenizer):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 500)
    monkeypatch.setattr(tokenizer_module, "CUT_SEARCHED", 300)
    cutter = new_tokenizer()
    generator = random.Random(2)
    parts = [
        "word",
        " ",
        "  ",
        "\n",
        "\n\n    ",
        "\t",
        "é",
        "日本語",
        "'ll",
        "''",
        "!?",
        "123",
        " 7",
        "\u3000",
        "\r\n",
        ".",
    ]
    for _ in range(30):
        text = "".join(generator.choices(parts, k=2000))
        pieces = list(cutter.pieces(text))
        assert len(pieces) > 5
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 500
        assert [id_ for piece in pieces for id_ in cutter.encode(piece)] == cutter.encode(text)


def test_an_endless_word_is_cut_too(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 500)
    cutter = tokenizer()
    assert [len(piece) for piece in cutter.pieces("a" * 1200)] == [500, 500, 200]
    assert list(cutter.pieces("")) == [""]


def test_a_saved_tokenizer_is_the_same(tmp_path):
    saved = tokenizer()
    saved.save(tmp_path / "tokenizer.json")
    loaded = prepare_tokenizer(DataConfig(tokenizer=str(tmp_path / "tokenizer.json")), 1, [])
    assert loaded.to_json() == saved.to_json()
    assert (loaded.size, loaded.end_of_text) == (saved.size, saved.end_of_text)


@pytest.mark.parametrize("end", ["</s>", "<|end_of_text|>", "<eos>", "<|im_end|>"])
def test_other_names_of_the_end_of_text_are_known(tmp_path, end):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer().to_json().replace(END_OF_TEXT, end))
    loaded = Tokenizer.load(path)
    assert loaded.decode([loaded.end_of_text]) == end


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        Tokenizer.load(path)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_files_that_are_not_a_tokenizer_are_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    assert "no such tokenizer file" in refusal(path)
    assert "no such tokenizer file" in refusal(tmp_path)
    for data, expected in {
        b"{": "not a tokenizer.json",
        b"{}": "not a tokenizer.json",
        b"\xff": "byte offset 0",
    }.items():
        path.write_bytes(data)
        assert expected in refusal(path)
    contents = json.loads(tokenizer().to_json())
    contents["model"]["vocab"]["a"] = (
        3_000_000_000  # the library would allocate memory for this many ids
    )
    path.write_text(json.dumps(contents))
    assert "has id 3000000000, but a vocabulary may have at most 16,777,216 ids" in refusal(path)
    path.write_text(tokenizer().to_json().replace(END_OF_TEXT, "<stop>"))
    assert "no end-of-text token; add <|endoftext|>" in refusal(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    assert "no such tokenizer file" in refusal(tmp_path / "tokenizer.json")


def test_an_end_of_text_that_text_could_spell_is_refused(tmp_path):
    contents = json.loads(tokenizer().to_json())
    contents["added_tokens"][0]["special"] = False
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(contents))
    assert "<|endoftext|> is not a special token" in refusal(path)


def changed(**parts: object) -> tokenizers.Tokenizer:
    """Return the tokenizer of `by_gpt2_words` with other parts."""
    inner = tokenizers.Tokenizer.from_str(by_gpt2_words().to_json())
    for name, part in parts.items():
        setattr(inner, name, part)
    return inner


def test_a_lossless_tokenizer_is_told_by_its_parts():
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with_prefix = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)

    def split(behavior: str) -> tokenizers.pre_tokenizers.PreTokenizer:
        parts = [tokenizers.pre_tokenizers.Split(" ", behavior=behavior), byte_level]
        return tokenizers.pre_tokenizers.Sequence(parts)

    assert tokenizer().is_lossless and tokenizer("bytes").is_lossless
    for lossless in (by_gpt2_words()._inner, changed(pre_tokenizer=split("isolated"))):
        assert Tokenizer(lossless, "x").is_lossless
    for lossy in (
        changed(normalizer=tokenizers.normalizers.NFC()),
        changed(pre_tokenizer=split("removed")),
        changed(pre_tokenizer=with_prefix),
        changed(pre_tokenizer=tokenizers.pre_tokenizers.Whitespace()),
        changed(decoder=tokenizers.decoders.Fuse()),
    ):
        assert not Tokenizer(lossy, "x").is_lossless
    added = changed()
    added.add_tokens([tokenizers.AddedToken("word", lstrip=True)])
    assert not Tokenizer(added, "x").is_lossless


@pytest.mark.parametrize(
    ("parts", "lost"),
    [
        ({"normalizer": tokenizers.normalizers.NFC()}, "'e\u0301' becomes 'é'"),
        ({"normalizer": tokenizers.normalizers.Lowercase()}, "'A' becomes 'a'"),
        ({"pre_tokenizer": tokenizers.pre_tokenizers.ByteLevel()}, "'a' becomes ' a'"),
    ],
)
def test_the_first_text_that_is_lost_is_quoted(parts, lost):
    lossy = Tokenizer(changed(**parts), "x")
    text, _, _ = lost.partition(" becomes ")
    texts = [" fine", text.strip("'"), " more"]
    assert lossy.first_loss(texts, lossy.encode_batch(texts)) == lost
    assert lossy.first_loss(texts[:1], lossy.encode_batch(texts[:1])) == ""
