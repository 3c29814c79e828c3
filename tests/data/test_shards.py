"""Token shards: what is written is read back, over shard borders, and damage is found."""

import json
from pathlib import Path

import numpy as np
import pytest

from moebius.data.shards import META, Meta, ShardWriter, open_split, token_dtype, verify
from moebius.errors import DataError

END = 0


def write(folder: Path, documents: list[list[int]], vocab_size: int = 1000, shard_tokens: int = 7) -> np.ndarray:
    """Write the documents as split train; return the tokens expected there."""
    with ShardWriter(folder, "train", vocab_size, END, shard_tokens) as writer:
        for ids in documents:
            writer.append(ids, num_bytes=10 * len(ids))
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
        writer.append([5, token, 7], 3)
    assert f"token id {token} is past the vocabulary of 1000; set --model.vocab_size" in str(caught.value)


def test_a_separator_inside_a_document_is_refused(tmp_path):
    with ShardWriter(tmp_path, "train", 1000, END) as writer, pytest.raises(DataError, match="end-of-text id 0"):
        writer.append([5, END, 7], 3)


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
    with pytest.raises(DataError, match=r"train-00002\.bin: damaged"):
        verify(tmp_path)


def test_damage_that_keeps_the_length(tmp_path):
    write(tmp_path, some_documents())
    shard = tmp_path / "train-00001.bin"
    data = bytearray(shard.read_bytes())
    data[4:6] = b"\xff\xff"
    shard.write_bytes(data)
    stream = open_split(tmp_path, "train")
    with pytest.raises(DataError, match=r"train-00001\.bin: token 2 has id 65535, past the vocabulary of 1000"):
        stream.read(5, 12)
    with pytest.raises(DataError, match=r"train-00001\.bin: damaged") as caught:
        verify(tmp_path)
    assert caught.value.exit_code == 3


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
