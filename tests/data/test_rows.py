"""Rows of CSV files and very long rows. test_sources.py tests the rest of JSON lines."""

from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from moebius.config import DataConfig
from moebius.data.formats import SourceFile, identify, state_of
from moebius.data.line_rows import CHUNK_BYTES, json_line_chunks
from moebius.data.sources import documents
from moebius.data.tally import Tally
from moebius.errors import DataError
from tests.data.files import COMPRESSIONS, CONTENTS


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
        b"a": "3: 1 column, but the first row has 2",
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
    for module in ("rows", "line_rows"):
        monkeypatch.setattr(f"moebius.data.{module}.LONGEST_ROW", 1000)
    monkeypatch.setattr("moebius.data.line_rows.LONG_BYTES", 500)
    monkeypatch.setattr("moebius.data.line_rows.CHUNK_BYTES", 200)
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


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.csv", "text,id,text\na,1,b\n"),
        ("a.csv", "id;text; text\n1;a;b\n"),
        ("a.jsonl", '{"text": "a", "id": 1, "text": "b"}\n'),
        ("a.jsonl", '{"te\\u0078t": "a", "text": "b"}\n'),
        ("a.json", '[{"text": "a", "text": "b"}]'),
        ("a.parquet", "parquet"),
        ("a.arrow", "arrow"),
    ],
)
def test_a_field_that_is_there_twice_is_refused(tmp_path, name, contents):
    file = tmp_path / name
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text"] * 2)
    if contents == "parquet":
        pyarrow.parquet.write_table(table, file)
    elif contents == "arrow":
        with pyarrow.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    else:
        file.write_text(contents)
    assert "2 fields are named 'text'; rename all but one" in refusal(file)


def test_other_fields_may_be_there_twice(tmp_path):
    row = '{"text": "a", "id": 1, "id": 2, "more": {"text": 1, "text": 2}}'
    (tmp_path / "a.jsonl").write_text(row)
    (tmp_path / "b.json").write_text(f"[{row}]")
    (tmp_path / "c.csv").write_text("id,text,id\n1,a,2\n")
    assert [text for text, _ in read(tmp_path)] == ["a"] * 3


def test_only_fields_that_hold_text_are_suggested(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"data": [{"text": "a"}], "version": 1}')
    assert "no field 'text', and none that holds text among: data, version;" in refusal(file)
    file.write_text('{"data": [], "name": "x", "body": "y"}')
    assert "(set --data.text_field to one of: name, body);" in refusal(file)


@pytest.mark.parametrize("name", ["a.jsonl", "array.json", "comma.csv"])
def test_plain_text_is_only_suggested_where_it_helps(tmp_path, name):
    suggestion = "as plain text with --data.format text"
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        file = tmp_path / f"{name}{suffix}"
        file.write_bytes(COMPRESSIONS[suffix](CONTENTS[name])[:-5])
        message = refusal(file)
        assert "damaged or incomplete" in message and suggestion not in message
        with pytest.raises(DataError, match="damaged or incomplete"):
            read(file, format="text")
    file = tmp_path / name
    file.write_bytes(CONTENTS[name].replace(b"row 7 ", b"row \xff7 "))
    assert "not UTF-8" in refusal(file) and suggestion not in refusal(file)
    file.write_bytes(CONTENTS[name].replace(b"text", b"body"))
    assert suggestion in refusal(file)


@pytest.mark.parametrize("rest", [0, 10, CHUNK_BYTES + 10])
def test_a_file_that_is_cut_while_it_is_read_ends(tmp_path, rest):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n' * (3 * CHUNK_BYTES // 14))
    format_ = identify(str(file), file.name, False)
    listed = SourceFile(str(file), file.name, format_, state_of(str(file)))
    parts = json_line_chunks(listed, "text", pytest.fail)
    next(parts)
    with file.open("r+b") as opened:
        opened.truncate(rest)
    assert len(list(zip(parts, range(10), strict=False))) < 10
