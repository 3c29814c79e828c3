"""Tokens are read back as written, also across the borders of shards, and damage is noticed."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebius.data.stream import (
    MappedShard,
    Part,
    TokenStream,
    check_at_start,
    open_split,
    verify,
)
from moebius.errors import DataError
from tests.data.test_shards import END, some_documents, write


def test_every_slice_across_every_border_is_read_back(tmp_path):
    expected = write(tmp_path, some_documents())
    stream = open_split(tmp_path, "train")
    assert len(list(tmp_path.glob("train-*.bin"))) == 5
    assert (len(stream), stream.num_documents, stream.num_bytes) == (35, 5, 300)
    for start in range(36):
        for stop in range(start, 36):
            tokens = stream.read(start, stop)
            assert tokens.dtype == np.int64
            assert tokens.tolist() == expected[start:stop].tolist()
    for start, stop in ((-1, 3), (0, 36), (5, 4)):
        with pytest.raises(IndexError):
            stream.read(start, stop)
    verify(tmp_path)


def test_there_are_as_many_separators_as_documents(tmp_path):
    write(tmp_path, some_documents())
    stream = open_split(tmp_path, "train")
    assert (stream.read(0, len(stream)) == END).sum() == stream.num_documents


def test_an_empty_split_is_a_stream_of_nothing(tmp_path):
    write(tmp_path, [])
    assert len(open_split(tmp_path, "train")) == 0
    assert open_split(tmp_path, "train").read(0, 0).tolist() == []


def test_a_file_of_the_wrong_length_is_named(tmp_path):
    write(tmp_path, some_documents())
    shard = tmp_path / "train-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train-00002\.bin: 13 bytes, but 14 were written"):
        open_split(tmp_path, "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"train-00002\.bin: 0 bytes"):
        open_split(tmp_path, "train")
    with pytest.raises(DataError, match=r"train-00002\.bin: 0 bytes"):
        verify(tmp_path)


@pytest.mark.parametrize("at_once", [0, 2**30])
def test_a_flipped_byte_is_named_before_its_block_is_used(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("moebius.data.stream.CHECKED_AT_START", at_once)
    write(tmp_path, [list(range(1, 1000))] * 100, shard_tokens=80_000)
    shard = tmp_path / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[70_000] ^= 1
    shard.write_bytes(data)
    message = (
        r"train-00000\.bin: damaged between bytes 65536 and 131072, where the checksum differs; "
        r"delete .* to prepare it again"
    )
    if at_once:
        with pytest.raises(DataError, match=message):
            check_at_start([open_split(tmp_path, "train")])
    else:
        stream = open_split(tmp_path, "train")
        check_at_start([stream])
        assert stream.read(0, 32_768)[1] == 1
        assert stream.read(80_000, 90_000).size == 10_000
        for _ in range(2):
            with pytest.raises(DataError, match=message):
                stream.read(32_000, 33_000)
    with pytest.raises(DataError, match=message) as caught:
        verify(tmp_path)
    assert caught.value.exit_code == 3


def test_damaged_checksums_and_a_damaged_tokenizer_are_named(tmp_path):
    write(tmp_path, some_documents())
    (tmp_path / "train-00003.crc").write_bytes(b"\0\0\0\0")
    for read in (lambda: open_split(tmp_path, "train"), lambda: verify(tmp_path)):
        with pytest.raises(DataError, match=r"train-00003\.crc: damaged"):
            read()
    (tmp_path / "tokenizer.json").write_bytes(b" ")
    with pytest.raises(DataError, match=r"tokenizer\.json: damaged"):
        verify(tmp_path)


def test_an_id_outside_the_vocabulary_is_named(tmp_path):
    shard = MappedShard(tmp_path / "train-00000.bin", np.array([1, 2, 65_535], dtype="<u2"))
    message = r"train-00000\.bin: token 2 has id 65535, outside the vocabulary of 1000"
    with pytest.raises(DataError, match=message):
        TokenStream([shard], 1000, 1, 3).read(1, 3)


def stream_of(first: int, length: int, vocab_size: int = 1000, shard_tokens: int = 3):
    """Return a stream in memory of the ids from `first` on, in short shards or an empty one."""
    ids = np.arange(first, first + length, dtype="<u2")
    shards = [
        MappedShard(Path(f"from-{first}"), ids[start : start + shard_tokens])
        for start in range(0, max(1, length), shard_tokens)
    ]
    return TokenStream(shards, vocab_size, num_documents=1, num_bytes=10 * length)


def test_a_stream_alone_is_one_part():
    assert stream_of(5, 8).parts == [Part(0, 8, 80)]


def test_joined_streams_are_one_stream_whose_parts_keep_their_weights():
    joined = TokenStream.joined(
        [stream_of(0, 8), stream_of(50, 0), stream_of(100, 4), stream_of(200, 1)], (3, 1, 0.5, 2)
    )
    assert joined.parts == [
        Part(0, 8, 80, 3),
        Part(8, 8, 0, 1),
        Part(8, 12, 40, 0.5),
        Part(12, 13, 10, 2),
    ]
    assert (len(joined), joined.num_documents, joined.num_bytes) == (13, 4, 130)
    expected = [*range(8), *range(100, 104), 200]
    for start in range(14):
        for stop in range(start, 14):
            assert joined.read(start, stop).tolist() == expected[start:stop]


def test_joined_streams_allow_the_ids_of_the_largest_vocabulary():
    joined = TokenStream.joined([stream_of(0, 3, 3), stream_of(5, 4, 9)], (1, 1))
    assert joined.read(0, 7).tolist() == [0, 1, 2, 5, 6, 7, 8]
    too_small = TokenStream.joined([stream_of(0, 3, 3), stream_of(5, 4, 8)], (1, 1))
    with pytest.raises(DataError, match="from-5: token 0 has id 8, outside the vocabulary of 8"):
        too_small.read(0, 7)


def test_a_stream_needs_one_weight_for_each_part():
    with pytest.raises(ValueError):
        TokenStream.joined([stream_of(0, 3), stream_of(5, 4)], (1,))


def test_what_is_read_may_be_changed_without_changing_the_shards():
    stream = stream_of(0, 8)
    stream.read(0, 8)[:] = 77
    assert stream.read(0, 8).tolist() == list(range(8))


def test_a_large_split_is_read_only_where_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("moebius.data.stream.CHECKED_AT_START", 10)
    write(tmp_path, some_documents())  # 35 tokens of 2 bytes in 5 shards
    for name, data in (("train-00000.bin", bytes(14)), ("train-00004.bin", bytes(14))):
        (tmp_path / name).write_bytes(data)
    stream = open_split(tmp_path, "train")
    check_at_start([stream])
    stream.read(7, 28)
    for start, stop, damaged in ((6, 8, "train-00000"), (27, 29, "train-00004")):
        with pytest.raises(DataError, match=rf"{damaged}\.bin: damaged between bytes 0 and 65536"):
            stream.read(start, stop)


def test_a_block_is_checked_once(monkeypatch):
    checked: list[int] = []
    crc32 = zlib.crc32
    tokens = np.full(100_000, 7, dtype="<u2")  # three blocks of 32,768 tokens and a part of one
    blocks = [tokens[start : start + 32_768] for start in range(0, 100_000, 32_768)]
    checksums = np.array([crc32(block.data) for block in blocks], dtype="<u4")

    def counted(data: Any) -> int:
        checked.append(len(data))
        return crc32(data)

    monkeypatch.setattr(zlib, "crc32", counted)
    shard = MappedShard(Path("shard"), tokens, checksums)
    for _ in range(3):
        assert shard.read(32_000, 33_000).tolist() == [7] * 1000
    assert checked == [32_768, 32_768]
    shard.read(0, 100_000)
    shard.check()
    assert checked == [32_768] * 3 + [100_000 - 3 * 32_768]


def test_the_smallest_streams_are_checked_as_far_as_one_budget_for_all_of_them_goes(monkeypatch):
    checked: list[str] = []
    monkeypatch.setattr(MappedShard, "check", lambda shard: checked.append(shard.file.name))
    streams = [stream_of(first, first, shard_tokens=100) for first in (50, 10, 30, 20, 40)]
    for budget, expected in ((119, ["10", "20"]), (120, ["10", "20", "30"]), (300, None)):
        monkeypatch.setattr("moebius.data.stream.CHECKED_AT_START", budget)
        checked.clear()
        check_at_start(streams)
        names = expected or ["10", "20", "30", "40", "50"]
        assert checked == [f"from-{name}" for name in names]
