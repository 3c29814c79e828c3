"""A record is read back as it was written, and anything else is an empty record."""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from moebius.data.record import RECORD_FILE, Record
from moebius.data.sealed import sealed_text
from moebius.data.shards import Shard, ShardWriter, Split


def some_record() -> Record:
    record = Record(0.25)
    for document_hash in (0.1, 0.7, 0.3):
        record.add(1, str(document_hash))
    shards = [Shard("train-00000.bin", 90, "f" * 64), Shard("train-00001.bin", 9, "0" * 64)]
    record.splits["train"] = Split(tokens=99, documents=2, bytes=300, shards=shards)
    record.splits["val"] = Split(tokens=11, documents=1, bytes=40)
    return record


def test_a_record_is_read_back(tmp_path):
    some_record().write(tmp_path)
    assert Record.read(tmp_path, 0.25) == some_record()
    assert [file.name for file in tmp_path.iterdir()] == [RECORD_FILE]


def test_a_record_read_back_goes_on_like_the_one_written(tmp_path):
    some_record().write(tmp_path)
    read, written = Record.read(tmp_path, 0.25), some_record()
    for record in (read, written):
        record.add(1, "0.9")
    assert read == written and read.documents == 4


def test_a_folder_without_a_record_has_an_empty_one(tmp_path):
    empty = Record.read(tmp_path, 0.25)
    assert empty == Record(0.25) and not empty.documents
    assert empty.splits == {"train": Split(), "val": Split()}
    assert Record.read(tmp_path / "no such folder", 0.25) == empty


def test_a_record_for_another_fraction_does_not_count(tmp_path):
    """Other documents would have been held out."""
    some_record().write(tmp_path)
    assert Record.read(tmp_path, 0.2) == Record(0.2)


def damaged() -> dict[str, str]:
    """Return contents of a record that cannot be continued, by what is wrong with them."""
    text = json.dumps(written := json.loads(json.dumps(some_record(), default=vars)))
    without_val = written | {"splits": {"train": written["splits"]["train"]}}
    outside = json.loads(text)
    outside["splits"]["train"]["shards"][0]["file"] = "../train-00000.bin"
    split = written["splits"]["train"]
    wrong_types = {
        f"{name} is {value!r}": json.dumps(
            written | {"splits": written["splits"] | {"train": split | {name: value}}}
        )
        for name in ("tokens", "documents", "bytes")
        for value in ("2", 2.0, None, -1, [2], True)
    }
    wrong_shards = {
        f"a shard's {name} is {value!r}": json.dumps(
            written
            | {
                "splits": written["splits"]
                | {"train": split | {"shards": [split["shards"][0] | {name: value}]}}
            }
        )
        for name, value in (
            ("tokens", "90"),
            ("tokens", -9),
            ("tokens", 100),
            ("sha256", None),
            ("file", "val-00000.bin"),
            ("file", "train-00001.bin"),
        )
    }
    unknown = json.loads(text)
    unknown["splits"]["train"]["shards"][0]["size"] = 3
    return (
        {
            "empty": "",
            "cut off": text[:-20],
            "a list": "[]",
            "no fields": "{}",
            "no split": json.dumps(without_val),
            "splits are a number": json.dumps(written | {"splits": 3}),
            "a shard outside the folder": json.dumps(outside),
            "a shard of another version": json.dumps(unknown),
            "not UTF-8": "\udcff",
            "nested deeply": "[" * 100_000,
            "nested deeply and closed": '{"splits":' * 50_000 + "0" + "}" * 50_000,
            "a long number": text.replace('"documents": 3', '"documents": 1' + "0" * 5000),
            "documents are text": json.dumps(written | {"documents": "3"}),
            "the chain is a number": json.dumps(written | {"chain": 3}),
        }
        | wrong_types
        | wrong_shards
    )


@pytest.mark.parametrize("what", damaged())
def test_a_damaged_record_is_an_empty_one(tmp_path, what):
    text = damaged()[what]
    with suppress(ValueError, RecursionError):
        values = json.loads(text)
        text = sealed_text(values) if isinstance(values, dict) else text  # as if written so
    (tmp_path / RECORD_FILE).write_bytes(text.encode(errors="surrogateescape"))
    assert Record.read(tmp_path, 0.25) == Record(0.25)


@pytest.fixture
def counted(tmp_path) -> tuple[Record, Path]:
    """A record of one complete shard and part of another, and the folder with their files."""
    record, ids = Record(0.25), np.arange(7, dtype="<u2")
    with ShardWriter(tmp_path, "train", 300, shard_tokens=5) as writer:
        writer.append(ids.tobytes(), 1, 12)
        writer.sync()
        record.splits["train"] = Split.from_json(asdict(writer.split))
        record.documents = 1
    record.write(tmp_path)
    return Record.read(tmp_path, 0.25), tmp_path


def test_a_record_and_its_files(counted):
    record, folder = counted
    assert len(record.splits["train"].shards) == 1 and record.documents == 1
    assert record.is_on_disk(folder, 2)
    with (folder / "train-00001.bin").open("ab") as file:
        file.write(b"written after the record")
    assert record.is_on_disk(folder, 2) and not record.is_on_disk(folder, 4)
    assert Record(0.25).is_on_disk(folder, 2)


@pytest.mark.parametrize("length", [None, 0, 1])
@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.crc", "train-00001.bin"])
def test_a_file_that_is_gone_or_too_short_is_noticed(counted, name, length):
    record, folder = counted
    if length is None:
        (folder / name).unlink()
    else:
        os.truncate(folder / name, length)
    assert not record.is_on_disk(folder, 2)


def test_a_failed_write_leaves_the_record_before_it(tmp_path, monkeypatch):
    some_record().write(tmp_path)
    later = some_record()
    later.add(1, "0.5")

    def fail(self: Path, target: Path) -> None:
        raise OSError

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(Path, "replace", fail)
        later.write(tmp_path)
    assert Record.read(tmp_path, 0.25) == some_record()
    later.write(tmp_path)
    assert Record.read(tmp_path, 0.25) == later


@pytest.mark.parametrize(
    "others",
    [(0.1, 0.3, 0.7), (0.1, 0.7), (0.1, 0.7, 0.3, 0.3), (0.1, 0.7, 0.31), ()],
    ids=["another order", "one fewer", "one more", "another document", "none"],
)
def test_the_chain_stands_for_the_documents_in_their_order(others):
    record = Record(0.25)
    for document_hash in others:
        record.add(1, str(document_hash))
    assert record.documents == len(others)
    assert record.chain != some_record().chain
