"""Parquet and Hugging Face rows; JSON lines are in test_sources."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from moebius.config import DataConfig
from moebius.data.sources import Document, Skipped, documents
from moebius.errors import DataError


def read(source: object, skipped: Skipped | None = None, **settings) -> list[Document]:
    return list(documents(DataConfig(source=str(source), **settings), skipped))


def refusal(source: object, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(file: Path, columns: dict, **settings) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), file, **settings)
    return file


def test_parquet_rows_across_batches(tmp_path):
    file = write(tmp_path / "a.parquet", {"id": range(1000), "body": [f"text {n}" for n in range(1000)]}, row_group_size=300)
    found = read(file, text_field="body")
    assert [document.text for document in found] == [f"text {n}" for n in range(1000)]
    assert found[-1].origin == f"{file}: row 1000"


def test_bad_parquet(tmp_path):
    file = write(tmp_path / "a.parquet", {"id": [1], "body": ["x"]})
    assert f"{file}: no field 'text' (--data.text_field); there are: id, body" in refusal(file)
    assert f"{file}: row 1: field 'id' is int, not text" in refusal(file, text_field="id")
    assert f"{file}: row 2: field 'text' is null, not text" in refusal(write(file, {"text": ["x", None]}))
    file.write_bytes(b"PAR1 nonsense")
    assert f"{file}: not readable as Parquet after row 0" in refusal(file)


def test_a_parquet_file_damaged_inside_is_bad_data_not_bad_storage(tmp_path):
    file = write(tmp_path / "a.parquet", {"text": ["hello " * 50] * 500}, compression="none", use_dictionary=False)
    data = bytearray(file.read_bytes())
    data[4:40] = b"\xff" * 36
    file.write_bytes(data)
    assert f"{file}: not readable as Parquet after row 0" in refusal(file)


def test_a_parquet_string_that_is_not_utf8(tmp_path):
    offsets = pyarrow.array([0, 2, 5], pyarrow.int32()).buffers()[1]
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"a\xff, ok")])
    file = write(tmp_path / "a.parquet", {"text": strings})
    assert f"{file}: row 1: byte offset 1 is not UTF-8 (0xff)" in refusal(file)
    assert [document.text for document in read(file, errors="skip")] == [", o"]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def test_hugging_face_on_a_local_folder_of_json_lines(tmp_path, offline):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read(f"hf:{tmp_path}") == [Document("one", f"hf:{tmp_path}: row 1"), Document("two", f"hf:{tmp_path}: row 2")]


def test_hugging_face_on_a_local_folder_of_parquet(tmp_path, offline):
    write(tmp_path / "a.parquet", {"body": ["one", None, "two"]})
    skipped = Skipped()
    found = read(f"hf:{tmp_path}", skipped, text_field="body", errors="skip")
    assert [document.text for document in found] == ["one", "two"]
    assert skipped.first == f"hf:{tmp_path}: row 2: field 'body' is null, not text"
    assert "no field 'text' (--data.text_field); there are: body" in refusal(f"hf:{tmp_path}")


def test_a_hub_that_cannot_be_reached_is_one_line(offline):
    assert refusal("hf:nobody/of-this-name").startswith("data.source='hf:nobody/of-this-name': ")
    assert "hf:NAME or hf:NAME:SUBSET" in refusal("hf:")
