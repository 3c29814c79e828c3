"""Rows of CSV files and very long rows. test_sources.py tests the rest of JSON lines."""

from pathlib import Path

import pytest

from moebius.config import DataConfig
from moebius.data.sources import documents
from moebius.data.tally import Tally
from moebius.errors import DataError


def read(file: Path, tally: Tally | None = None, **settings) -> list[tuple[str, str]]:
    found = documents(DataConfig(source=str(file), **settings), tally)
    return [(document.text, document.origin) for document in found]


def refusal(file: Path, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read(file, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_csv_rows_that_cannot_be_read_are_named_and_the_next_ones_are_read(tmp_path):
    file = tmp_path / "a.csv"
    for row, expected in {
        b'"a"b,1': "3: not CSV",
        b"a,1,2": "3: 3 columns, but the first row has 2",
        b"a": "3: 1 columns, but the first row has 2",
        b"a\xff,1": "3: field 'text' is not UTF-8 (0xff)",
    }.items():
        file.write_bytes(b"text,id\nfine,0\n" + row + b'\n\n"two\nlines",2\n')
        assert f"{file}:{expected}" in refusal(file)
        tally = Tally()
        rows = read(file, tally, errors="skip")
        assert rows == [("fine", f"{file}:2"), ("two\nlines", f"{file}:6")]
        assert tally.count == 1


def test_a_quotation_mark_that_is_never_closed_is_an_error_and_joins_no_rows(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text('text\tid\n"open\t1\nb\t2\nc\t3\n')
    tally = Tally()
    assert read(file, tally, errors="skip") == []
    assert tally.count == 1
    file.write_text('text\tid\n"open\t1\nb"\t2\nc\t3\td\n')
    assert read(file, Tally(), errors="skip") == [("open\t1\nb", f"{file}:3")]


def test_a_csv_file_without_names_in_its_first_row_is_refused(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("some sentence,1\nanother,2\n")
    assert "no field 'text' (set --data.text_field to one of: some sentence, 1)" in refusal(file)
    file.write_bytes("text,id\n".encode("utf-16"))
    assert f"{file}:1: not UTF-8 (0xff)" in refusal(file)


def test_a_row_too_long_for_memory_is_refused_and_the_next_ones_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("moebius.data.rows.LONGEST_ROW", 1000)
    lines, array = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text('{"text": "a"}\n{"text": "' + "x" * 5000 + '"}\n{"text": "b"}\n')
    assert f"{lines}:2: a line of more than 1,000 bytes" in refusal(lines)
    assert [text for text, _ in read(lines, errors="skip")] == ["a", "b"]
    exact = '{"text": "' + "y" * (1000 - 13) + '"}\n'  # of the largest size that is read
    assert len(exact) == 1000
    lines.write_text(exact + exact[:-3] + 'y"}\n{"text": "b"}\n')
    assert f"{lines}:2: a line of more than 1,000 bytes" in refusal(lines)
    assert [text[:1] for text, _ in read(lines, errors="skip")] == ["y", "b"]
    array.write_text('[{"text": "a"},\n{"text": "' + "x" * 600_000 + '"}]')
    assert "not readable as JSON after row 1 (character 16: a value of more than 1," in refusal(
        array
    )
