"""A text file is one document unless it is long or the only one; cuts lose no character."""

import random
from pathlib import Path

import pytest

from moebius.config import DataConfig
from moebius.data.sources import documents
from moebius.data.tally import Tally
from moebius.data.text_files import FEWEST_PIECES, LONGEST_DOCUMENT, PIECE_BYTES


def pieces(source: Path, **settings) -> list[str]:
    return [document.text for document in documents(DataConfig(source=str(source), **settings))]


@pytest.fixture
def long_text() -> str:
    generator = random.Random(0)
    return "".join("ä" * generator.randrange(200) + "\n" for _ in range(8000))


def test_a_long_file_is_cut_after_line_ends(tmp_path, long_text):
    (tmp_path / "long.txt").write_text(long_text)
    (tmp_path / "short.txt").write_text("short\n" * 1000)
    assert len(long_text.encode()) > LONGEST_DOCUMENT
    *cut, short = pieces(tmp_path)
    assert "".join(cut) == long_text
    assert short == "short\n" * 1000
    assert all(
        piece.endswith("\n") and PIECE_BYTES <= len(piece.encode()) < PIECE_BYTES + 1000
        for piece in cut[:-1]
    )


def test_a_file_of_exactly_the_longest_length_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("a" * LONGEST_DOCUMENT)
    (tmp_path / "b.txt").write_text("b")
    assert pieces(tmp_path) == ["a" * LONGEST_DOCUMENT, "b"]


def test_a_short_file_that_is_the_whole_source_is_cut_finer(tmp_path):
    text = "".join(f"line {number}\n" for number in range(2000))
    (tmp_path / "only.txt").write_text(text)
    for source in (tmp_path / "only.txt", tmp_path, tmp_path / "*.txt"):
        cut = pieces(source)
        assert "".join(cut) == text
        assert FEWEST_PIECES - 1 <= len(cut) <= FEWEST_PIECES + 1


@pytest.mark.parametrize("character", ["a", "é", "€", "𝄞"])
def test_one_endless_line_is_cut_between_characters(tmp_path, character):
    for shift in range(4):
        text = "x" * shift + character * 3000
        (tmp_path / "only.txt").write_text(text)
        cut = pieces(tmp_path / "only.txt")
        assert len(cut) > 1
        assert "".join(cut) == text


def test_only_a_bad_piece_is_left_out_and_the_offset_counts_from_the_start_of_the_file(
    tmp_path, long_text
):
    data = bytearray(long_text.encode())
    # This is the end of a line; inside a character, the error would be at its first byte.
    offset = data.index(b"\n", 600_000)
    data[offset] = 0xFF
    (tmp_path / "long.txt").write_bytes(data)
    tally = Tally()
    config = DataConfig(source=str(tmp_path / "long.txt"), errors="skip")
    kept = list(documents(config, tally))
    assert tally.count == 1
    assert f"long.txt: byte offset {offset} is not UTF-8 (0xff)" in tally.first
    kept_bytes = sum(len(document.text.encode()) for document in kept)
    assert 0 < len(data) - kept_bytes < 2 * PIECE_BYTES
    assert kept[1].origin == f"{tmp_path}/long.txt: byte {len(kept[0].text.encode())}"
