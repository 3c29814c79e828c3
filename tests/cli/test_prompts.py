"""Prompts come from files and from standard input, and what is wrong with them is one line."""

import io
import sys
from pathlib import Path

import pytest

from moebius.cli.prompts import read_prompts
from moebius.errors import DataError, StorageError


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\n\r\n  two ", ["one", "  two "]),
        (b"\xef\xbb\xbfone", ["one"]),
        ("a\u2028b\x0cc\n".encode(), ["a\u2028b\x0cc"]),
        (b'\n{"prompt": "a\\nb"}\n{"prompt": ""}\n', ["a\nb", ""]),
        (b'{"text": "a"}\n[1]\n', ['{"text": "a"}', "[1]"]),
    ],
)
def test_prompts(data, prompts, tmp_path, monkeypatch):
    assert read_prompts(written(tmp_path / "prompts.txt", data)) == prompts
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert read_prompts("-") == prompts


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("p.txt", b"", "p.txt: has no prompts"),
        ("p.txt", b"\n \n", "p.txt: has no prompts"),
        ("p.txt", b"ab\n\xff", "p.txt: byte offset 3 is not UTF-8 (0xff)"),
        ("p.txt", b'{"prompt": "a"}\nb', "p.txt: line 2: must be a JSON object"),
        ("p.jsonl", b'{"text": "a"}', "p.jsonl: line 1: must be a JSON object"),
        ("p.jsonl", b'{"prompt": 3}', "p.jsonl: line 1: must be a JSON object"),
        ("p.jsonl", b'\n{"prompt": "\\ud800"}', "p.jsonl: line 2: the prompt has half"),
    ],
)
def test_what_is_no_prompt(name, data, part, tmp_path):
    with pytest.raises(DataError) as error:
        read_prompts(written(tmp_path / name, data))
    assert part in str(error.value)


def test_what_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="gone: No such file"):
        read_prompts(str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="directory"):
        read_prompts(str(tmp_path))
    with pytest.raises(StorageError, match="null"):
        read_prompts("a\0b")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(StorageError, match="standard input is closed"):
        read_prompts("-")
