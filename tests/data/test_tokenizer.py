"""Tokenizers: lossless, deterministic, and no text can spell the end of a document."""

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

SENTENCES = [f"def function_{number}(argument):\n    return argument + {number}\n" for number in range(200)]


def tokenizer(kind: str = "bpe", vocab_size: int = 400) -> Tokenizer:
    return prepare_tokenizer(DataConfig(tokenizer=kind), vocab_size, SENTENCES)


def random_text(generator: random.Random) -> str:
    """Any characters that UTF-8 can hold: controls, combining marks, astral planes, but no half surrogates."""
    ranges = [(0, 128), (0, 0x3000), (0xE000, 0x10FFFF), (0x300, 0x370), (32, 33)]
    return "".join(chr(generator.randrange(*generator.choice(ranges))) for _ in range(generator.randrange(60))).replace(
        END_OF_TEXT, ""
    )


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_any_text_comes_back(kind):
    found = tokenizer(kind)
    generator = random.Random(0)
    samples = [random_text(generator) for _ in range(500)]
    samples += ["", " ", "  \n\t ", "\r\n", "\0", "\ufeffx", "a" * 5000, *SENTENCES[:3]]
    samples = [text for text in samples if not any(0xD800 <= ord(character) < 0xE000 for character in text)]
    for text, ids in zip(samples, found.encode_batch(samples), strict=True):
        assert found.decode(ids.tolist()) == text
        assert ids.tolist() == found.encode(text)
        assert all(0 <= number < found.size for number in ids)


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_text_that_spells_the_end_of_text_does_not_become_it(kind, tmp_path):
    found = tokenizer(kind)
    found.save(tmp_path / "tokenizer.json")
    for each in (found, Tokenizer.load(tmp_path / "tokenizer.json")):
        for text in (END_OF_TEXT, f"a{END_OF_TEXT}b", f" {END_OF_TEXT}\n"):
            assert each.end_of_text not in each.encode(text) + each.encode_batch([text])[0].tolist()
            assert each.decode(each.encode(text)) == text
        assert each.decode([each.end_of_text]) == END_OF_TEXT


def test_bytes_is_one_id_a_byte():
    found = tokenizer("bytes", 257)
    assert found.size == 257
    assert len(found.encode("aé€𝄞")) == 1 + 2 + 3 + 4


def test_bpe_compresses_and_keeps_to_its_size():
    found = tokenizer()
    assert 257 < found.size <= 400
    text = "".join(SENTENCES)
    assert len(found.encode(text)) < len(text) / 2
    assert prepare_tokenizer(DataConfig(vocab_size=300), 400, SENTENCES).size == 300


def test_too_small_a_vocabulary_names_the_field_that_was_set():
    with pytest.raises(ConfigError, match=r"^model\.vocab_size=256: "):
        tokenizer("bpe", 256)
    with pytest.raises(ConfigError, match=r"^data\.vocab_size=100: "):
        prepare_tokenizer(DataConfig(vocab_size=100), 400, SENTENCES)


def test_the_same_text_gives_the_same_bytes_in_another_process():
    program = (
        "from moebius.config import DataConfig; from moebius.data.tokenizer import prepare_tokenizer; import sys\n"
        "texts = [f'def function_{n}(argument):\\n    return argument + {n}\\n' for n in range(200)]\n"
        "sys.stdout.write(prepare_tokenizer(DataConfig(), 400, texts).to_json())"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, check=True).stdout.decode() == tokenizer().to_json()


def by_gpt2_words() -> Tokenizer:
    """A tokenizer as it may be given: the library's own words, and so no cache."""
    inner = tokenizers.Tokenizer.from_str(tokenizer().to_json())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(inner, "given")


def test_only_our_own_words_are_cached(tmp_path):
    assert tokenizer()._words is not None
    assert tokenizer("bytes")._words is not None
    assert by_gpt2_words()._words is None
    contents = json.loads(tokenizer().to_json())
    for change in ({"normalizer": {"type": "Lowercase"}}, {"model": contents["model"] | {"dropout": 0.5}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(contents | change))
        assert Tokenizer.load(tmp_path / "tokenizer.json")._words is None


@pytest.mark.parametrize("limit", [0, 3, 2**18])
def test_words_from_the_cache_have_the_librarys_ids(monkeypatch, limit):
    """Each text again and again, with what the cache forgot in between."""
    monkeypatch.setattr("moebius.data.words.CACHED_WORDS", limit)
    monkeypatch.setattr("moebius.data.words.LONGEST_CACHED", 5)
    found = tokenizer()
    generator = random.Random(1)
    texts = [text for text in map(random_text, [generator] * 300) if not any(0xD800 <= ord(c) < 0xE000 for c in text)]
    texts += [
        "it's '' 'll ''ll 's's",
        "a \u3000 b\u00a0c\x1c d \u2028\n",
        "12 345\t6 \n\n  x",
        "\x85 \x1f",
        *SENTENCES,
        *SENTENCES,
    ]
    for first in range(0, len(texts), 50):
        batch = texts[first : first + 50]
        assert [ids.tolist() for ids in found.encode_batch(batch)] == [found.encode(text) for text in batch]


@pytest.mark.parametrize("make", [tokenizer, by_gpt2_words])
def test_pieces_of_a_long_text_have_its_ids(monkeypatch, make):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 500)
    monkeypatch.setattr(tokenizer_module, "CUT_SEARCHED", 300)
    found = make()
    generator = random.Random(2)
    parts = ["word", " ", "  ", "\n", "\n\n    ", "\t", "é", "日本語", "'ll", "''", "!?", "123", " 7", "\u3000", "\r\n", "."]
    for _ in range(30):
        text = "".join(generator.choices(parts, k=2000))
        pieces = list(found.pieces(text))
        assert len(pieces) > 5
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 500
        assert [number for piece in pieces for number in found.encode(piece)] == found.encode(text)


def test_an_endless_word_is_cut_all_the_same(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 500)
    found = tokenizer()
    assert [len(piece) for piece in found.pieces("a" * 1200)] == [500, 500, 200]
    assert list(found.pieces("")) == [""]


def test_a_saved_tokenizer_is_the_same(tmp_path):
    found = tokenizer()
    found.save(tmp_path / "tokenizer.json")
    again = prepare_tokenizer(DataConfig(tokenizer=str(tmp_path / "tokenizer.json")), 1, [])
    assert again.to_json() == found.to_json()
    assert (again.size, again.end_of_text) == (found.size, found.end_of_text)


@pytest.mark.parametrize("end", ["</s>", "<|end_of_text|>", "<eos>", "<|im_end|>"])
def test_other_names_of_the_end_are_known(tmp_path, end):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer().to_json().replace(END_OF_TEXT, end))
    found = Tokenizer.load(path)
    assert found.decode([found.end_of_text]) == end


def bad(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        Tokenizer.load(path)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_bad_tokenizer_files(tmp_path):
    path = tmp_path / "tokenizer.json"
    assert "no such tokenizer file" in bad(path)
    assert "no such tokenizer file" in bad(tmp_path)
    for data, expected in {b"{": "not a tokenizer.json", b"{}": "not a tokenizer.json", b"\xff": "byte offset 0"}.items():
        path.write_bytes(data)
        assert expected in bad(path)
    contents = json.loads(tokenizer().to_json())
    contents["model"]["vocab"]["a"] = 3_000_000_000  # the library would count up to it
    path.write_text(json.dumps(contents))
    assert "id 3000000000 in the vocabulary; 16,777,216 ids are the most" in bad(path)
    path.write_text(tokenizer().to_json().replace(END_OF_TEXT, "<stop>"))
    assert "no end-of-text token; add <|endoftext|>" in bad(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    assert "no such tokenizer file" in bad(tmp_path / "tokenizer.json")


def test_an_end_that_text_could_spell_is_refused(tmp_path):
    contents = json.loads(tokenizer().to_json())
    contents["added_tokens"][0]["special"] = False
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(contents))
    assert "<|endoftext|> is not a special token" in bad(path)


def test_the_sample_is_bounded_and_spread_over_the_text(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "SAMPLE_CHARACTERS", 1000)
    monkeypatch.setattr(tokenizer_module, "SAMPLE_PIECE", 10)
    texts = [f"{number:010d}" * 3 for number in range(1000)]
    sample = tokenizer_module.sample(texts)
    assert 500 <= sum(map(len, sample)) <= 1000
    numbers = [int(piece) for piece in sample]
    assert numbers[0] < 20
    assert numbers[-1] > 980
    assert sample == tokenizer_module.sample(iter(texts))


def test_reading_for_the_sample_is_bounded(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "SAMPLE_READ_CHARACTERS", 100)
    endless = iter(lambda: "ten chars.", None)
    assert tokenizer_module.sample(endless) == ["ten chars."] * 10
