"""Token shards: what is written is read back, over shard borders, and damage is found."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from moebius.data.shards import META, Meta, ShardWriter, token_dtype
from moebius.data.stream import MappedShard, TokenStream, open_split, verify
from moebius.errors import DataError

END = 0


def write(folder: Path, documents: list[list[int]], vocab_size: int = 1000, shard_tokens: int = 7) -> np.ndarray:
    """Write the documents as split train; return the tokens expected there."""
    with ShardWriter(folder, "train", vocab_size, END, shard_tokens) as writer:
        for ids in documents:
            writer.append(np.array(ids, dtype=np.int64), num_bytes=10 * len(ids))
        split = writer.finish()
    (folder / "tokenizer.json").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    splits = {"train": split}
    Meta(
        dtype=writer.dtype.name, vocab_size=vocab_size, end_of_text=END, tokenizer_sha256=empty, skipped=0, splits=splits
    ).write(folder)
    return np.array([token for ids in documents for token in (END, *ids)])


def some_documents(highest: int = 999) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(1, highest + 1, size).tolist() for size in (3, 0, 20, 1, 6)]


def test_every_slice_over_every_border(tmp_path):
    expected = write(tmp_path, some_documents())
    stream = open_split(tmp_path, "train")
    assert len(list(tmp_path.glob("train-*.bin"))) == 5
    assert (len(stream), stream.num_documents, stream.num_bytes) == (35, 5, 300)
    for start in range(36):
        for stop in range(start, 36):
            found = stream.read(start, stop)
            assert found.dtype == np.int64
            assert found.tolist() == expected[start:stop].tolist()
    for start, stop in ((-1, 3), (0, 36), (5, 4)):
        with pytest.raises(IndexError):
            stream.read(start, stop)
    verify(tmp_path)


def test_the_separators_count_the_documents(tmp_path):
    write(tmp_path, some_documents())
    stream = open_split(tmp_path, "train")
    assert (stream.read(0, len(stream)) == END).sum() == stream.num_documents


@pytest.mark.parametrize(("vocab_size", "dtype", "width"), [(65_536, "uint16", 2), (65_537, "uint32", 4)])
def test_the_width_of_a_token(tmp_path, vocab_size, dtype, width):
    write(tmp_path, [[1, vocab_size - 1, 2]], vocab_size)
    assert token_dtype(vocab_size).name == dtype == json.loads((tmp_path / META).read_text())["dtype"]
    assert (tmp_path / "train-00000.bin").stat().st_size == 4 * width
    assert open_split(tmp_path, "train").read(0, 4).tolist() == [END, 1, vocab_size - 1, 2]


@pytest.mark.parametrize("token", [1000, 65_536, 70_000, -1])
def test_an_id_past_the_vocabulary_is_never_truncated(tmp_path, token):
    with ShardWriter(tmp_path, "train", 1000, END) as writer, pytest.raises(DataError) as caught:
        writer.append(np.array([5, token, 7]), 3)
    assert f"token id {token} is past the vocabulary of 1000; set --model.vocab_size" in str(caught.value)


def test_a_separator_inside_a_document_is_refused(tmp_path):
    with ShardWriter(tmp_path, "train", 1000, END) as writer, pytest.raises(DataError, match="end-of-text id 0"):
        writer.append(np.array([5, END, 7]), 3)


def test_an_empty_split_is_a_stream_of_nothing(tmp_path):
    write(tmp_path, [])
    assert len(open_split(tmp_path, "train")) == 0
    assert open_split(tmp_path, "train").read(0, 0).tolist() == []


def test_a_file_of_another_length_is_named(tmp_path):
    write(tmp_path, some_documents())
    shard = tmp_path / "train-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train-00002\.bin: 13 bytes, 14 were written"):
        open_split(tmp_path, "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"train-00002\.bin: 0 bytes"):
        open_split(tmp_path, "train")
    with pytest.raises(DataError, match=r"train-00002\.bin: 0 bytes"):
        verify(tmp_path)


@pytest.mark.parametrize("at_once", [0, 2**30])
def test_a_flipped_byte_is_named_before_its_block_is_used(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("moebius.data.stream.CHECKED_AT_ONCE", at_once)
    write(tmp_path, [list(range(1, 1000))] * 100, shard_tokens=80_000)
    shard = tmp_path / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[70_000] ^= 1
    shard.write_bytes(data)
    named = r"train-00000\.bin: damaged between bytes 65536 and 131072, a checksum differs; delete .* to prepare it again"
    if at_once:
        with pytest.raises(DataError, match=named):
            open_split(tmp_path, "train")
    else:
        stream = open_split(tmp_path, "train")
        assert stream.read(0, 32_768)[1] == 1
        assert stream.read(80_000, 90_000).size == 10_000
        for _ in range(2):
            with pytest.raises(DataError, match=named):
                stream.read(32_000, 33_000)
    with pytest.raises(DataError, match=named) as caught:
        verify(tmp_path)
    assert caught.value.exit_code == 3


def test_damaged_checksums_and_a_damaged_tokenizer(tmp_path):
    write(tmp_path, some_documents())
    (tmp_path / "train-00003.crc").write_bytes(b"\0\0\0\0")
    for found in (lambda: open_split(tmp_path, "train"), lambda: verify(tmp_path)):
        with pytest.raises(DataError, match=r"train-00003\.crc: damaged"):
            found()
    (tmp_path / "tokenizer.json").write_bytes(b" ")
    with pytest.raises(DataError, match=r"tokenizer\.json: damaged"):
        verify(tmp_path)


def test_an_id_past_the_vocabulary_is_named(tmp_path):
    shard = MappedShard(tmp_path / "train-00000.bin", np.array([1, 2, 65_535], dtype="<u2"))
    with pytest.raises(DataError, match=r"train-00000\.bin: token 2 has id 65535, past the vocabulary of 1000"):
        TokenStream([shard], 1000, 1, 3).read(1, 3)


def test_a_writer_goes_on_where_another_had_synced(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    documents = [np.arange(1, size) for size in (9, 4, 30, 2, 5, 11)]
    with ShardWriter(tmp_path / "whole", "train", 1000, END, 7) as writer:
        for ids in documents:
            writer.append(ids, 3)
        expected = writer.finish()
    first = ShardWriter(tmp_path / "halves", "train", 1000, END, 7)
    for ids in documents[:3]:
        first.append(ids, 3)
    first.sync()
    synced = copy.deepcopy(first.split)
    first.append(documents[0], 3)  # lost with the process
    first.sync()
    with ShardWriter(tmp_path / "halves", "train", 1000, END, 7, split=synced) as writer:
        for ids in documents[3:]:
            writer.append(ids, 3)
        assert writer.finish() == expected
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "halves" / file.name).read_bytes()


def test_bad_meta(tmp_path):
    write(tmp_path, some_documents())
    path = tmp_path / META
    good = json.loads(path.read_text())
    outside = json.loads(path.read_text())
    outside["splits"]["train"]["shards"][0]["file"] = "../elsewhere.bin"
    for contents, expected in {
        "": "not readable",
        "[]": "not readable",
        "{}": "not readable",
        json.dumps(good | {"dtype": "uint32"}): "dtype uint32, but 1000 ids are stored as uint16",
        json.dumps(good | {"version": 1}): "format 1, this Moebius reads",
        json.dumps({name: value for name, value in good.items() if name != "skipped"}): "not readable",
        json.dumps(good | {"splits": {"train": 3}}): "not readable",
        json.dumps(outside): "a shard outside the folder",
        json.dumps(good | {"splits": {}}): "no split 'train'",
    }.items():
        path.write_text(contents)
        with pytest.raises(DataError) as caught:
            open_split(tmp_path, "train")
        assert expected in str(caught.value)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"meta\.json: not readable"):
        open_split(tmp_path, "train")
