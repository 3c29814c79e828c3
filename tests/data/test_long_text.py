"""Long texts are read in parts, whole and unchanged, and take no memory of their own."""

import json
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from moebius.config import DataConfig
from moebius.data import long_text
from moebius.data.ingest import _in_batches, _pieces
from moebius.data.long_text import LongText, json_text, parts_of, slices, utf8_text
from moebius.data.sources import chunks, documents
from moebius.data.tally import Tally
from moebius.data.tokenizer import prepare_tokenizer

CHARACTERS = ("a", "é", "\n", '"', "\\", "\U0001f600", "\u2028", " ", "\\u", "\x01")


@pytest.fixture
def short_parts(monkeypatch):
    """Make parts so short that every character is somewhere at the border of two of them."""
    monkeypatch.setattr(long_text, "PART_BYTES", 17)


def test_any_text_comes_back_from_json_and_from_utf8_in_slices_of_any_length(short_parts):
    generator = random.Random(0)
    for _ in range(1000):
        text = "".join(generator.choices(CHARACTERS, k=generator.randint(18, 80)))
        row = {"a": "short", "text": text, "b": text[::-1], "c": [1, {"text": "d"}]}
        line = bytearray(json.dumps(row, ensure_ascii=generator.random() < 0.5).encode())
        found = json_text(line, "text")
        assert isinstance(found, LongText)
        assert "".join(found) == "".join(found) == text
        assert "".join(utf8_text(text.encode()) or "") == text
        parts = list(slices(found, 7))
        assert "".join(parts) == text and {len(part) for part in parts[:-1]} == {7}
        assert list(slices(text, 7)) == parts and "".join(parts_of(text)) == text


LONG = "abc" * 20


@pytest.mark.parametrize(
    "line",
    [
        rb'{"text": "%s\ud800x"}',
        rb'{"text": "%s\udc00"}',
        rb'{"text": "%s\ud83d\u0041"}',
        rb'{"text": "%s\q"}',
        b'{"text": "%s\n"}',
        rb'{"text": "%s\u0000"}',
        b'{"text": "%s\xff"}',
        b'{"text": "%s", "text": "x"}',
        b'{"text": "%s"',
        rb'{"text": "%s\u00"}',
        rb'{"text": "%s\\',
        b'{"text": 3, "b": "%s"}',
        b'{"text": "long text0", "b": "%s"}',
        b'["%s"]',
        b'{"text": {"text": "%s"}}',
    ],
)
def test_a_line_with_an_error_or_without_a_long_text_is_left_to_the_usual_parser(
    short_parts, line
):
    assert json_text(bytearray(line.replace(b"%s", LONG.encode())), "text") is None


def test_a_long_line_that_ends_inside_of_a_text_with_many_quotes_is_read_once():
    line = bytearray(b'{"text": "' + rb"a quote: \"" * 200_000)
    start = time.process_time()
    assert json_text(line, "text") is None
    assert time.process_time() - start < 10  # it took minutes


@pytest.mark.parametrize("data", [b"a" * 40 + b"\xff", b"\0" * 40, "é".encode()[:1]])
def test_a_buffer_that_is_no_text_is_left_to_the_usual_reader(short_parts, data):
    assert utf8_text(data) is None


@pytest.mark.parametrize(
    ("is_ascii", "prefix"),
    [
        (False, "\U0001f600"),
        *(
            pytest.param(*case, marks=pytest.mark.heavy)
            for case in ((False, ""), (True, ""), (True, "\U0001f600"))
        ),
    ],
)
def test_a_huge_row_takes_its_own_bytes_and_a_fifth_until_it_is_in_pieces(
    tmp_path: Path, prefix: str, is_ascii: bool
):
    text = prefix + 'A line of "text" \\ with é and words.\n' * 600_000
    file = tmp_path / "rows.jsonl"
    row = json.dumps({"id": 1, "text": text, "more": [2]}, ensure_ascii=is_ascii)
    file.write_text('{"text": "short"}\n' + row + '\n{"text": "last"}\n')
    num_characters = len(text)
    del row, text
    config = DataConfig(source=str(file))
    tokenizer = prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])
    tracemalloc.start()
    found = 0
    for batch, _ in _in_batches(_pieces(chunks(config, Tally()), tokenizer), 0):
        for piece in batch.pieces:
            assert not isinstance(piece.chunk.data, LongText)
            found += len(piece.chunk.raw.decode())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found >= num_characters
    # A piece of 2**20 characters takes a fixed amount, four bytes for each with an emoji in it.
    assert peak < 1.2 * file.stat().st_size + 16 * 2**20
    assert [len(document.text) for document in documents(config)] == [5, num_characters, 4]
