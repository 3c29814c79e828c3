"""A checkpoint's file is hashed from memory, has the library's format, and is compared in full."""

import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as from_library
from safetensors.torch import save as library_bytes

from moebius.errors import CheckpointError
from moebius.train import checkpoint_file
from moebius.train.checkpoint import PARSING_ERRORS, snapshot
from moebius.train.checkpoint_file import (
    DTYPES,
    has_size,
    read_bytes,
    read_verified,
    tensor_pieces,
    tensors_in,
    verify_file,
    write_file,
)
from tests.train.checkpoints import is_same, lie, some_tensors


@pytest.mark.parametrize("group", ["model", "optimizer", "random", "empty"])
def test_a_file_of_tensors_is_the_one_that_the_library_writes(group):
    tensors = snapshot({"empty": {}} | some_tensors())[group]
    assert b"".join(tensor_pieces(tensors)) == library_bytes(tensors)


def test_every_dtype_and_any_name_is_read_by_the_library_and_aligned():
    names = "float64 complex64 float16 bfloat16 float8_e4m3fn float8_e5m2 int8 int16 uint8 bool"
    tensors = {
        f"weight of {name} \N{SNOWMAN}\n\"'": torch.ones(number, 3).to(getattr(torch, name))
        for number, name in enumerate(names.split(), start=1)
    }
    data = b"".join(tensor_pieces(tensors))
    assert len(data) == len(library_bytes(tensors))
    loaded = from_library(data)
    assert loaded.keys() == tensors.keys()
    assert all(is_same(loaded[name], tensors[name]) for name in tensors)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name, tensor in tensors.items():
        assert (start + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_tensors_are_not_copied():
    weight = torch.arange(6.0)
    _, data = tensor_pieces({"weight": weight})
    assert isinstance(data, memoryview) and len(data) == 24
    weight[0] = 5.0
    assert data[:4] == torch.tensor([5.0]).numpy().tobytes()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_an_entry_is_of_all_pieces_whatever_the_chunk(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(checkpoint_file, "CHUNK", chunk)
    data = os.urandom(100)
    entry = write_file(tmp_path / "file", [data[:30], b"", memoryview(data)[30:]])
    assert entry == {"bytes": 100, "sha256": hashlib.sha256(data).hexdigest()}
    assert read_verified(tmp_path / "file", entry) == data == read_bytes(tmp_path / "file")
    verify_file(tmp_path / "file", entry)


@pytest.mark.parametrize("how", ["flip", "zeros", "truncate", "lengthen", "nothing"])
def test_the_entry_is_of_what_was_meant_and_not_of_what_the_disk_has(tmp_path, monkeypatch, how):
    data = os.urandom(1000)
    with monkeypatch.context() as patched:
        lie(patched, "file", how)
        entry = write_file(tmp_path / "file", [data])
    assert entry == {"bytes": 1000, "sha256": hashlib.sha256(data).hexdigest()}
    assert (tmp_path / "file").read_bytes() != data
    for compare in (verify_file, read_verified):
        with pytest.raises(CheckpointError, match="file"):
            compare(tmp_path / "file", entry)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no such call")
def test_a_file_is_forgotten_by_the_page_cache_once_it_is_synced(tmp_path, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: calls.append("posix_fadvise"))
    write_file(tmp_path / "file", [b"data"])
    assert calls == ["fsync", "posix_fadvise"]


def test_a_file_system_that_takes_no_advice_is_no_error(tmp_path, monkeypatch):
    def refused(*arguments: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refused, raising=False)
    verify_file(tmp_path / "file", write_file(tmp_path / "file", [b"data"]))


def test_nothing_is_read_from_a_file_of_another_size(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"12345")
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("it was opened"))
    entry = {"bytes": 4, "sha256": ""}
    assert not has_size(tmp_path / "file", entry)
    for compare in (verify_file, read_verified):
        with pytest.raises(CheckpointError, match="5 bytes, but 4 were written"):
            compare(tmp_path / "file", entry)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path, make):
    make(tmp_path / "file")
    for compare in (verify_file, read_verified):
        with pytest.raises(CheckpointError, match=r"file: (not a file|No such file)"):
            compare(tmp_path / "file", {"bytes": 4, "sha256": ""})
    with pytest.raises(CheckpointError):
        read_bytes(tmp_path / "file")


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="null"):
        verify_file(tmp_path / "a\0b", {"bytes": 4, "sha256": ""})


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    entry = write_file(tmp_path / "file", [b"data"])

    def denied(path: Path, *arguments: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    for compare in (verify_file, read_verified):
        with pytest.raises(CheckpointError, match="file: Permission denied"):
            compare(tmp_path / "file", entry)


@pytest.mark.parametrize("group", ["model", "optimizer", "random"])
def test_tensors_are_read_as_the_library_reads_them_and_share_the_memory_of_the_file(group):
    tensors = snapshot(some_tensors())[group]
    data = bytearray(library_bytes(tensors))
    loaded = tensors_in(data)
    assert loaded.keys() == tensors.keys()
    assert all(is_same(loaded[name], tensors[name]) for name in tensors)
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded.values()}) == 1
    (name, largest) = max(loaded.items(), key=lambda pair: pair[1].nbytes)
    largest.view(-1).view(torch.uint8)[0] ^= 255
    assert not is_same(tensors_in(data)[name], tensors[name])


def test_every_dtype_of_the_library_is_known():
    for code, dtype in DTYPES.items():
        data = library_bytes({"weight": torch.zeros(2, 3).to(dtype)})
        assert f'"dtype":"{code}"'.encode() in data
        (tensor,) = tensors_in(bytearray(data)).values()
        assert (tensor.dtype, tensor.shape) == (dtype, (2, 3))


def header_of(**entries: object) -> bytearray:
    """Return a file of tensors with these entries in its header, and 8 bytes of content."""
    header = json.dumps(entries).encode()
    return bytearray(len(header).to_bytes(8, "little") + header + bytes(8))


def entry_of(dtype: str = "F32", shape: object = (2,), begin: int = 0, end: int = 8) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_tensor_that_is_not_aligned_is_copied():
    shifted = header_of(**{"a": entry_of("U8", [1], 0, 1), "b": entry_of("U8", [7], 1, 8)})
    assert tensors_in(shifted).keys() == {"a", "b"}
    for padding in range(8):  # the length of the header decides about the alignment
        data = header_of(**{"w" * (padding + 1): entry_of()})
        data[-8:] = torch.tensor([1.5, -2.0]).numpy().tobytes()
        (weight,) = tensors_in(data).values()
        assert weight.tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        (100).to_bytes(8, "little") + b"{}",
        header_of(),
        header_of(w=entry_of(shape=[3])),
        header_of(w=entry_of(shape=[-1, -2])),
        header_of(w=entry_of(shape=["2"])),
        header_of(w=entry_of(dtype="F3")),
        header_of(w=entry_of(end=4, shape=[1])),
        header_of(w=entry_of(begin=4, end=12)),
        header_of(w=entry_of(begin=-8, end=0)),
        header_of(w=[1]),
    ],
)
def test_a_header_that_makes_no_sense_is_an_error_that_loading_names(data):
    with pytest.raises(PARSING_ERRORS):
        tensors_in(bytearray(data))


def test_a_file_is_in_memory_once_and_verifying_takes_no_more_than_a_piece(tmp_path):
    size = 64 * checkpoint_file.CHUNK
    entry = write_file(tmp_path / "file", tensor_pieces({"weight": torch.ones(size // 4)}))
    peaks = []
    for read in (lambda path, entry: tensors_in(read_verified(path, entry)), verify_file):
        tracemalloc.start()
        result = read(tmp_path / "file", entry)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        del result
    assert size <= peaks[0] < 1.05 * size
    assert peaks[1] < 3 * checkpoint_file.CHUNK
