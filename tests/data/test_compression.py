"""Compressed data is read as the tools that write it understand it, and nothing of it is lost."""

import gzip
import io
import lzma
from collections.abc import Callable

import pytest

from moebius.config import DataConfig
from moebius.data.compression import compression_of, decompressed, is_damage
from moebius.data.sources import documents
from tests.data.files import COMPRESSIONS, CONTENTS, TEXTS

DATA = b"one line\n" * 5000
SKIPPABLE = b"\x53\x2a\x4d\x18\x05\0\0\0-----"
zstd = COMPRESSIONS[".zst"]


def unpacked(data: bytes) -> bytes:
    compression = compression_of(data)
    return decompressed(io.BufferedReader(io.BytesIO(data)), (compression,)).read()


@pytest.mark.parametrize(
    ("packed", "times"),
    [
        (SKIPPABLE + zstd(DATA), 1),
        (SKIPPABLE * 3 + zstd(DATA) + SKIPPABLE + zstd(DATA) + SKIPPABLE, 2),
        (b"\x5f\x2a\x4d\x18" + (2**17).to_bytes(4, "little") + bytes(2**17) + zstd(DATA), 1),
        (gzip.compress(DATA) + bytes(1000), 1),
        (gzip.compress(DATA) + bytes(512) + gzip.compress(DATA), 2),
        (lzma.compress(DATA) + bytes(20_000), 1),
        (lzma.compress(DATA) * 2 + bytes(64) + lzma.compress(DATA), 3),
        (COMPRESSIONS[".bz2"](DATA) * 2, 2),
    ],
)
def test_frames_and_padding_that_the_formats_allow_are_read(packed, times):
    assert unpacked(packed) == DATA * times


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd, COMPRESSIONS[".bz2"]])
def test_what_follows_the_data_is_an_error_and_not_lost(compress: Callable[[bytes], bytes]):
    packed = compress(DATA)
    for rest in (b"something else", b"?" * 20_000, packed[: len(packed) // 2], packed[10:]):
        with pytest.raises(Exception) as caught:
            unpacked(packed + rest)
        assert is_damage(caught.value)


def test_a_file_that_begins_with_a_skippable_frame_is_read_with_its_suffix_and_without(tmp_path):
    for name in ("a.jsonl.zst", "a.jsonl"):
        file = tmp_path / name
        file.write_bytes(SKIPPABLE + zstd(CONTENTS["a.jsonl"]))
        found = documents(DataConfig(source=str(file)))
        assert [document.text for document in found] == TEXTS


@pytest.mark.parametrize("inner", [suffix for suffix in COMPRESSIONS if suffix])
@pytest.mark.parametrize("outer", [suffix for suffix in COMPRESSIONS if suffix])
def test_a_file_that_was_compressed_twice_is_read(tmp_path, inner, outer):
    for name in (f"a.jsonl{inner}{outer}", f"a.jsonl{outer}", "a.jsonl"):
        file = tmp_path / name
        file.write_bytes(COMPRESSIONS[outer](COMPRESSIONS[inner](CONTENTS["a.jsonl"])))
        found = documents(DataConfig(source=str(file)))
        assert [document.text for document in found] == TEXTS
