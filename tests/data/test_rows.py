"""Rows of Parquet files and Hugging Face datasets. test_sources.py tests rows of JSON lines."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from moebius.config import DataConfig
from moebius.data.sources import Document, documents
from moebius.data.tally import Tally
from moebius.errors import DataError


def read(source: object, tally: Tally | None = None, **settings) -> list[Document]:
    return list(documents(DataConfig(source=str(source), **settings), tally))


def refusal(source: object, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(file: Path, columns: dict, **settings) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), file, **settings)
    return file


def test_parquet_rows_across_batches(tmp_path):
    file = write(
        tmp_path / "a.parquet",
        {"id": range(1000), "body": [f"text {n}" for n in range(1000)]},
        row_group_size=300,
    )
    rows = read(file, text_field="body")
    assert [document.text for document in rows] == [f"text {n}" for n in range(1000)]
    assert rows[-1].origin == f"{file}: row 1000"


def test_parquet_that_cannot_be_read_is_one_line(tmp_path):
    file = write(tmp_path / "a.parquet", {"id": [1], "body": ["x"]})
    assert f"{file}: no field 'text' (set --data.text_field to one of: id, body)" in refusal(file)
    assert f"{file}: row 1: field 'id' is int, not text" in refusal(file, text_field="id")
    assert f"{file}: row 2: field 'text' is null, not text" in refusal(
        write(file, {"text": ["x", None]})
    )
    file.write_bytes(b"PAR1 nonsense")
    assert f"{file}: not readable as Parquet after row 0" in refusal(file)


def test_a_parquet_file_damaged_inside_is_bad_data_not_bad_storage(tmp_path):
    file = write(
        tmp_path / "a.parquet",
        {"text": ["hello " * 50] * 500},
        compression="none",
        use_dictionary=False,
    )
    data = bytearray(file.read_bytes())
    data[4:40] = b"\xff" * 36
    file.write_bytes(data)
    assert f"{file}: not readable as Parquet after row 0" in refusal(file)


def test_a_parquet_string_that_is_not_utf8(tmp_path):
    offsets = pyarrow.array([0, 2, 5], pyarrow.int32()).buffers()[1]
    strings = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"a\xff, ok")]
    )
    file = write(tmp_path / "a.parquet", {"text": strings})
    assert f"{file}: row 1: byte offset 1 is not UTF-8 (0xff)" in refusal(file)
    assert [document.text for document in read(file, errors="skip")] == [", o"]


def test_long_cells_are_read_few_at_a_time(tmp_path, monkeypatch):
    file = write(
        tmp_path / "a.parquet",
        {"text": [f"{n}" * 10_000 for n in range(40)]},
        use_dictionary=False,
    )
    expected = read(file)
    monkeypatch.setattr("moebius.data.tables.PARQUET_BYTES", 100_000)
    batch_sizes = []

    def iter_batches(self, batch_size, columns):
        batch_sizes.append(batch_size)
        return original(self, batch_size, columns=columns)

    original = pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    assert read(file) == expected
    assert 1 < batch_sizes[0] < 10


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def test_hugging_face_on_a_local_folder_of_json_lines(tmp_path, offline):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read(f"hf:{tmp_path}") == [
        Document("one", f"hf:{tmp_path}: row 1"),
        Document("two", f"hf:{tmp_path}: row 2"),
    ]


def test_hugging_face_on_a_local_folder_of_parquet(tmp_path, offline):
    write(tmp_path / "a.parquet", {"body": ["one", None, "two"]})
    tally = Tally()
    rows = read(f"hf:{tmp_path}", tally, text_field="body", errors="skip")
    assert [document.text for document in rows] == ["one", "two"]
    assert tally.first == f"hf:{tmp_path}: row 2: field 'body' is null, not text"
    assert "no field 'text' (set --data.text_field to one of: body)" in refusal(f"hf:{tmp_path}")


def test_a_hub_that_cannot_be_reached_is_one_line(offline):
    assert refusal("hf:nobody/of-this-name").startswith("data.source='hf:nobody/of-this-name': ")
    assert "hf:NAME or hf:NAME:SUBSET" in refusal("hf:")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    def no_network(self, name, timeout):
        raise ConnectionError(f"https://huggingface.co/{name}?token=secret: no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", no_network)
    monkeypatch.setattr("datasets.load_dataset", None)
    assert (
        refusal("hf:a/b") == "data.source='hf:a/b': the Hugging Face hub could not be reached "
        "(ConnectionError: https://huggingface.co/a/b no network)"
    )


def test_a_data_set_with_a_script_is_refused(tmp_path, offline):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert refusal(f"hf:{folder}").startswith("data.source=")
    assert refusal(f"hf:{folder}/scripted.py").startswith("data.source=")
    assert not (tmp_path / "ran").exists()
