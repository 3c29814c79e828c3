"""What is read from a source, in what order, and the one-line error for each bad input."""

import gzip
import json
import os
import sysconfig
import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from moebius.config import DataConfig
from moebius.data import rows
from moebius.data.json_values import json_values
from moebius.data.sources import Document, documents
from moebius.data.tally import SAME_FILE, PassedOver, Tally
from moebius.errors import DataError, StorageError


def read(source: object, tally: Tally | None = None, **settings) -> list[Document]:
    return list(documents(DataConfig(source=str(source), **settings), tally))


def texts(source: object, **settings) -> list[str]:
    return [document.text for document in read(source, **settings)]


def refusal(source: object, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **settings)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "b.txt": "b",
        "a/z.rs": "z",
        "a/y": "y",
        "empty.md": "",
        ".git/config": "hidden",
        "a/.env": "hidden",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_folder_is_all_its_text_files_of_any_suffix_sorted(folder):
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff")
    assert texts(folder) == ["y", "z", "b"]


def test_a_folder_mixes_kinds_of_files(folder):
    (folder / "c.JSONL").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert texts(folder) == ["y", "z", "b", "one", "two"]


def test_utf16_text_in_a_folder_is_not_taken_for_binary(folder):
    (folder / "windows.txt").write_bytes("text".encode("utf-16"))
    assert "windows.txt: byte offset 0 is not UTF-8 (0xff)" in refusal(folder)


def test_links_to_the_folder_itself_and_broken_links_are_not_files(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "broken").symlink_to(folder / "nowhere")
    assert texts(folder) == ["y", "z", "b"]


def test_a_file_and_links_to_it_are_read_once(folder, tmp_path):
    for name in ("a-link.txt", "c-link.txt"):
        (folder / name).symlink_to(folder / "b.txt")
    for source in (folder, folder / "*.txt", folder / "**"):
        tally = Tally()
        assert texts(source, tally=tally).count("b") == 1
        assert tally.passed_over[SAME_FILE] == PassedOver(2, str(folder / "a-link.txt"))
        assert not any("WARNING" in line for line in tally.lines())
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("c")
    for name in ("d.txt", "e.txt"):
        (folder / name).symlink_to(elsewhere)
    assert texts(folder).count("c") == 1
    assert texts(folder / "e.txt") == ["c"]


def test_two_hard_links_count_as_two_files_as_copies_of_them_do(folder):
    (folder / "hard.txt").hardlink_to(folder / "b.txt")
    assert texts(folder).count("b") == 2


def test_the_cache_of_the_hub_is_read_once(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "4f2e").write_text('{"text": "one"}\n{"text": "two"}\n')
    (snapshot / "train.jsonl").symlink_to(Path("..", "..", "blobs", "4f2e"))
    assert texts(tmp_path) == texts(snapshot) == ["one", "two"]


def test_a_glob_may_span_folders(folder):
    assert texts(folder / "**" / "*.*") == ["z", "b"]
    assert texts(folder / "*.txt") == ["b"]


def test_the_home_folder_may_be_abbreviated(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert texts("~/b.txt") == ["b"]
    assert "no such file, folder or glob" in refusal("~nobody-of-this-name/b.txt")


def test_a_source_without_files_is_an_error(tmp_path):
    assert refusal("/no/such") == "data.source='/no/such': no such file, folder or glob"
    assert "no such file, folder or glob" in refusal("/no/*.txt")
    assert "no files in this folder" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pipe", "dangling", "loop", "/dev/zero"])
def test_what_is_not_a_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    expected = (
        "no such file"
        if name in ("dangling", "loop")
        else "neither a file nor a folder (a device or a pipe)"
    )
    assert expected in refusal(tmp_path / name)
    (tmp_path / "a.txt").write_text("a")
    assert texts(tmp_path) == ["a"]


def test_a_file_that_vanishes_between_listing_and_reading_is_named(folder):
    remaining = documents(DataConfig(source=str(folder)))
    assert next(remaining).text == "y"
    (folder / "a" / "z.rs").unlink()
    with pytest.raises(StorageError, match=r"z\.rs: No such file or directory"):
        next(remaining)


def test_line_ends_of_text_are_kept_but_not_a_byte_order_mark_at_the_start_of_the_file(folder):
    (folder / "crlf.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc \xef\xbb\xbf\n")
    assert texts(folder / "crlf.txt") == ["a\r\nb\rc \ufeff\n"]


def test_the_offset_of_bytes_that_are_not_utf8_is_exact(tmp_path):
    (tmp_path / "bad.txt").write_bytes("äö".encode() + b"x\xff rest")
    expected = (
        f"{tmp_path}/bad.txt: byte offset 5 is not UTF-8 (0xff); "
        "fix it, or leave out such documents with --data.errors skip"
    )
    assert refusal(tmp_path / "bad.txt") == expected


def test_a_json_line_that_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    start = '{"text": "fine"}\n'
    for line, expected in {
        '{"text" "x"}': f"{file}:2: column 9 is not JSON",
        "\0" * 5: f"{file}:2: column 1 is not JSON",
        "[" * 100_000: f"{file}:2: not JSON that can be read",
        '{"text": ' + "1" * 5000 + "}": f"{file}:2: not JSON that can be read",
        '{"body": "x", "id": 1}': (
            f"{file}:2: no field 'text' (set --data.text_field to one of: body)"
        ),
        "{}": f"{file}:2: no field 'text', and no other field",
        '{"text": 3}': f"{file}:2: field 'text' is int, not text",
        '{"text": null}': f"{file}:2: field 'text' is null, not text",
        '["x"]': f"{file}:2: must be an object with a field 'text', not list",
        '{"text": "a\\ud800"}': f"{file}:2: field 'text' has half a surrogate pair at character 1",
    }.items():
        file.write_text(start + line + "\n")
        assert refusal(file).startswith(expected)
    file.write_bytes(start.encode() + b'{"text": "\xe9"}\n')
    assert refusal(file).startswith(f"{file}: byte offset 27 is not UTF-8 (0xe9)")


def test_json_lines_may_begin_with_a_byte_order_mark_and_contain_line_separators(tmp_path):
    (tmp_path / "rows.ndjson").write_text(
        '\ufeff{"body": "a\u2028b"}\r\n{"body": "c"}', encoding="utf-8"
    )
    assert read(tmp_path / "rows.ndjson", text_field="body") == [
        Document("a\u2028b", f"{tmp_path}/rows.ndjson:1"),
        Document("c", f"{tmp_path}/rows.ndjson:2"),
    ]


def test_with_skip_unreadable_documents_are_counted_and_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "one"}\nnonsense\n{"text": "\xff"}\n{"text": "two"}\n'
    )
    (tmp_path / "b.txt").write_bytes(b"\xff")
    (tmp_path / "c.parquet").write_bytes(b"not parquet")
    tally = Tally()
    assert [document.text for document in read(tmp_path, tally, errors="skip")] == ["one", "two"]
    assert tally.count == 4
    assert tally.first.startswith(f"{tmp_path}/a.jsonl:2: column 1 is not JSON")


def test_a_file_without_permission_to_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def deny(self, *arguments, **named):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(StorageError, match=r"a\.txt: Permission denied") as caught:
        read(tmp_path)
    assert caught.value.exit_code == 6


def test_a_folder_without_permission_to_list_is_counted_and_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def refusing(path: str):
        if Path(path) == tmp_path / "secret":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    tally = Tally()
    assert [document.text for document in read(tmp_path, tally)] == ["a"]
    line = f"WARNING: passed over: folder that cannot be read: 1 folder, {tmp_path}/secret"
    assert line in tally.lines()


def test_the_standard_library_is_read_without_installed_packages(tmp_path, monkeypatch):
    for name in (
        "os.py",
        "json/decoder.py",
        "site-packages/x.py",
        "dist-packages/x.py",
        "__pycache__/x.py",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    (tmp_path / "empty.py").write_bytes(b"")
    (tmp_path / "tests_of_marks.py").write_text("\ufeffpass")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    tally = Tally()
    assert [document.text for document in read("python-stdlib", tally)] == [
        "json/decoder.py",
        "os.py",
        "\ufeffpass",  # as ever, so that the tokens of old runs are the same
    ]
    assert tally.count == 0


@pytest.mark.parametrize(
    ("name", "contents", "place"),
    [
        ("a.txt", "word " * 4000 + "\0" + "word", "byte offset 20000 is a zero byte"),
        ("a.txt.gz", "word " * 4000 + "\0" + "word", "byte offset 20000 is a zero byte"),
        ("a.txt", "word\n" * 400_000 + "\0" + "word", "byte offset 2000000 is a zero byte"),
        ("a.csv", "text,id\na,1\n\0,2\n", ":3: has a zero byte"),
        ("a.csv", "text,id\na,1\n" + "b,2\n" * 9000 + "b,\0\n", ":9003: has a zero byte"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\0"}\n', ":2: column 11 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\\u0000"}\n', "has a zero byte at character 1"),
        ("a.json", '[{"text": "a"}' + " " * 9000 + ',"\0"]', "not readable as JSON after row 1"),
    ],
)
def test_a_zero_byte_is_no_text_wherever_it_is(tmp_path, name, contents, place):
    data = contents.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (tmp_path / "other.txt").write_text("text")
    message = refusal(tmp_path)
    assert f"{tmp_path / name}" in message and place in message
    tally = Tally()
    kept = read(tmp_path, tally, errors="skip")
    assert tally.count == 1 and place in tally.first
    assert not any("\0" in document.text for document in kept)
    assert kept[-1].text == "text"


@pytest.mark.parametrize("errors", ["stop", "skip"])
def test_nothing_is_read_after_the_first_row_that_cannot_be_read_unless_it_is_left_out(
    tmp_path, monkeypatch, errors
):
    (tmp_path / "a.json").write_text(json.dumps([{"number": n} for n in range(100)]))
    num_rows = 0

    def counted(*arguments) -> Iterator[Any]:
        nonlocal num_rows
        for row in json_values(*arguments):
            num_rows += 1
            yield row

    monkeypatch.setattr(rows, "json_values", counted)
    tally = Tally()
    with pytest.raises(DataError, match="row 1: no field") if errors == "stop" else nullcontext():
        assert read(tmp_path, tally, errors=errors) == []
    assert num_rows == (1 if errors == "stop" else 100)
    assert tally.count == (0 if errors == "stop" else 100)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_rows_that_are_left_out_take_no_memory(tmp_path, kind):
    """Consecutive bad rows are counted, and only the reason of the first is kept."""
    file = tmp_path / f"rows.{kind}"
    peaks: list[int] = []
    for count in (500, 5_000):
        if kind == "json":
            file.write_text("[" + ",\n".join(f'{{"text": {n}}}' for n in range(count)) + "]")
        else:
            file.write_text("text,id\n" + "".join(f"{n}\n" for n in range(count)))
        tally = Tally()
        tracemalloc.start()
        assert read(file, tally, errors="skip") == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert tally.count == count
        assert "row 1:" in tally.first or ":2:" in tally.first
    assert peaks[1] < peaks[0] + 50 * 5_000
