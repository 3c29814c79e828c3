"""Rows of Parquet and Arrow files."""

import gzip
import lzma
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
    assert f"{file}: no field 'text' (set --data.text_field to one of: body)" in refusal(file)
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


def write_arrow(file: Path, columns: dict, is_stream: bool, rows_per_batch: int = 7) -> Path:
    table = pyarrow.table(columns)
    new = pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file
    with new(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    return file


@pytest.mark.parametrize("is_stream", [True, False])
def test_arrow_rows_across_batches(tmp_path, is_stream):
    columns = {"id": range(50), "body": [f"text {n}" for n in range(50)]}
    file = write_arrow(tmp_path / "a.arrow", columns, is_stream)
    rows = read(file, text_field="body")
    assert [document.text for document in rows] == columns["body"]
    assert rows[-1].origin == f"{file}: row 50"
    assert "no field 'text' (set --data.text_field to one of: body)" in refusal(file)
    assert f"{file}: row 1: field 'id' is int, not text" in refusal(file, text_field="id")


@pytest.mark.parametrize("is_stream", [True, False])
def test_an_arrow_file_that_was_cut_off_is_one_line(tmp_path, is_stream):
    file = write_arrow(tmp_path / "a.arrow", {"text": ["hello " * 50] * 500}, is_stream)
    file.write_bytes(file.read_bytes()[:9000])
    assert f"{file}: not readable as Arrow after row " in refusal(file)


def test_a_compressed_table_that_was_cut_off_is_one_line(tmp_path):
    file = write(tmp_path / "a.parquet", {"text": [f"hello {n}" for n in range(500)]})
    packed = tmp_path / "b.parquet.gz"
    packed.write_bytes(gzip.compress(file.read_bytes())[:-30])
    assert f"{packed}: not readable as Parquet (gzip) after row 0" in refusal(packed)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_flipped_byte_in_a_compressed_table_is_one_line(tmp_path, share):
    """The check sums of xz notice it, and pyarrow reads through them."""
    texts = [f"{number} {number**7}" for number in range(5000)]
    file = write(tmp_path / "a.parquet", {"text": texts})
    packed = tmp_path / "a.parquet.xz"
    data = bytearray(lzma.compress(file.read_bytes()))
    packed.write_bytes(data)
    assert [document.text for document in read(packed)] == texts
    data[int(share * len(data))] ^= 0x40
    packed.write_bytes(data)
    message = refusal(packed)
    assert message.startswith(f"{packed}: not readable as Parquet (xz) after row ")
    assert "\n" not in message
