"""What a file is does not depend on how it is named as a source: alone, in a folder, by a glob,
in a list or at a URL.
"""

import io
import json
import lzma
import tarfile
from pathlib import Path

import fsspec
import pytest

from moebius.config import DataConfig
from moebius.data.formats import TEXT, identify
from moebius.data.row_syntax import JSON, JSON_LINES
from moebius.data.source_names import weighted_sources
from moebius.data.sources import documents
from moebius.data.tally import Tally
from moebius.errors import DataError
from tests.data.files import COMPRESSIONS, CONTENTS, TEXTS


def read(source: object, tally: Tally | None = None, **settings) -> list[str]:
    sources = weighted_sources(DataConfig(source=str(source), **settings))
    return [document.text for single in sources for document in documents(single, tally)]


def refusal(source: object, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **settings)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every_way_to_name(file: Path) -> list[object]:
    """Return the file, its folder, and globs; nothing else is in its folder."""
    folder = file.parent
    return [file, folder, folder / "*", folder / "**", folder.parent / "**" / file.name]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_of_file_is_read_compressed_or_not_however_it_is_named(tmp_path, name, suffix):
    file = tmp_path / "folder" / (name + suffix)
    file.parent.mkdir()
    file.write_bytes(COMPRESSIONS[suffix](CONTENTS[name]))
    for source in every_way_to_name(file):
        tally = Tally()
        assert read(source, tally) == TEXTS, source
        (amount,) = tally.read.values()
        assert (amount.files, amount.documents) == (1, len(TEXTS))
        assert amount.bytes == sum(len(text.encode()) for text in TEXTS)
        assert tally.passed_over == {}


@pytest.mark.parametrize("suffix", list(COMPRESSIONS)[1:])
@pytest.mark.parametrize("name", ["a.jsonl", "array.json", "comma.csv", "a.parquet", "plain.txt"])
def test_compression_is_recognized_without_its_suffix_and_damage_is_one_line(
    tmp_path, name, suffix
):
    data = CONTENTS.get(name) or "".join(TEXTS * 500).encode()
    packed = COMPRESSIONS[suffix](data)
    (tmp_path / name).write_bytes(packed)
    (tmp_path / f"plain-{name}").write_bytes(data)
    assert read(tmp_path / name) == read(tmp_path / f"plain-{name}")
    for length in (3, len(packed) // 2, len(packed) - 1):
        cut = tmp_path / f"{name}{suffix}"
        cut.write_bytes(packed[:length])
        assert str(cut) in refusal(cut)
        tally = Tally()
        read(cut, tally, errors="skip")
        assert tally.count >= 1 and str(cut) in tally.first


def test_several_kinds_in_one_folder_and_in_a_list(tmp_path):
    for name, contents in CONTENTS.items():
        (tmp_path / name).write_bytes(contents)
        (tmp_path / f"{name}.gz").write_bytes(COMPRESSIONS[".gz"](contents))
    tally = Tally()
    assert read(tmp_path, tally) == TEXTS * 2 * len(CONTENTS)
    assert tally.num_files == 2 * len(CONTENTS)
    assert tally.passed_over == {}
    assert read(f"{tmp_path}/a.jsonl.gz,{tmp_path}/comma.csv") == TEXTS * 2


def test_urls_are_read_like_files(tmp_path):
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    for name, suffix in (("a.jsonl", ".gz"), ("array.json", ".zst"), ("b.csv", "")):
        data = CONTENTS["comma.csv" if name == "b.csv" else name]
        system.pipe_file(f"/bucket/{name}{suffix}", COMPRESSIONS[suffix](data))
    system.pipe_file("/bucket/picture", b"\x89PNG\0")
    tally = Tally()
    assert read("memory://bucket", tally, cache=str(tmp_path)) == TEXTS * 3
    assert tally.passed_over["an image"].first == "/bucket/picture"
    assert read("memory://bucket/*.zst", cache=str(tmp_path)) == TEXTS


def test_plain_text_is_cut_in_the_same_places_compressed_or_not(tmp_path):
    long = "é" * 400_000 + "\n" + "a line\n" * 100_000
    for number, text in enumerate(["short é\n" * 50, long]):
        plain = tmp_path / f"{number}.txt"
        plain.write_text(text)
        for suffix, compress in COMPRESSIONS.items():
            packed = tmp_path / f"{number}.txt{suffix}"
            packed.write_bytes(compress(plain.read_bytes()))
            assert read(packed) == read(plain)


BINARY = {
    "one-zero-byte.txt": b"some text\0more text\n",
    "picture.txt": b"\x89PNG\r\n\x1a\nno zero byte",
    "photo": b"\xff\xd8\xff\xe0 no zero byte",
    "book.pdf": b"%PDF-1.7\n%\xe2\xe3",
    "archive.zip": b"PK\x03\x04 no zero byte",
    "weights.pkl": b"\x80\x04\x95 no zero byte",
    "empty.txt": b"",
}


@pytest.mark.parametrize("name", BINARY)
def test_what_is_not_text_is_passed_over_and_counted_wherever_it_is(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(BINARY[name])
    for source in every_way_to_name(folder / name):
        assert f"{folder / name}" in refusal(source)
    (folder / "other.txt").write_text("text")
    for source in (folder, folder / "*", folder / "**"):
        tally = Tally()
        assert read(source, tally) == ["text"]
        ((reason, files),) = tally.passed_over.items()
        assert (files.count, files.first) == (1, str(folder / name))
        assert reason in tally.lines()[1]


def test_an_archive_inside_a_compression_is_an_archive(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        (tmp_path / "member.txt").write_text("text")
        archive.add(tmp_path / "member.txt")
    for name in ("a.tar.gz", "a.tgz", "a"):
        (tmp_path / name).write_bytes(packed.getvalue())
        assert "no text in it: a tar archive" in refusal(tmp_path / name)


def test_a_file_that_is_only_named_as_if_it_were_compressed_is_an_error(tmp_path):
    for suffix in list(COMPRESSIONS)[1:]:
        for data in (b"not compressed", b""):
            (tmp_path / "folder").mkdir(exist_ok=True)
            file = tmp_path / "folder" / f"a.txt{suffix}"
            file.write_bytes(data)
            (tmp_path / "folder" / "b.txt").write_text("b")
            assert f"{file}: damaged or incomplete" in refusal(tmp_path / "folder")
            tally = Tally()
            assert read(tmp_path / "folder", tally, errors="skip") == ["b"]
            assert tally.count == 1
            file.unlink()


def test_json_without_the_field_names_its_fields_and_the_way_to_read_it_as_text(tmp_path):
    contents = '{\n "name": "x",\n "version": 3\n}\n'
    (tmp_path / "package.json").write_text(contents)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "main.py").write_text("print()\n")
    message = refusal(tmp_path)
    assert "package.json: row 1: no field 'text' (set --data.text_field to one of: name" in message
    assert message.endswith("or read files of JSON as plain text with --data.format text")
    assert "one of: a, b" in refusal(tmp_path / "table.csv")
    assert read(tmp_path, format="text") == ["print()\n", contents, "a,b\n1,2\n"]
    packed = tmp_path / "package.json.gz"
    packed.write_bytes(COMPRESSIONS[".gz"](contents.encode()))
    assert "".join(read(packed, format="text")) == contents


@pytest.mark.parametrize(
    ("name", "contents", "kind"),
    [
        ("a.json", '{"text": "x"}', JSON_LINES),
        ("a.json", "hello", JSON),
        ("a.json", '{"text":\n"x"}', JSON),
        ("a.json", '  \n[{"text": "x"}]', JSON),
        ("a", json.dumps({"text": "x" * 100_000}) + "\n", JSON_LINES),
        ("a.txt", '{"text": "x"}\n{"text": "y"}\n', JSON_LINES),
        ("a.txt", '{"text": "x"}\nand no more\n', TEXT),
        ("a.txt", "{}\n{}\n", TEXT),
        ("a.txt", "[1] A footnote\n", TEXT),
        ("a.js", '[{a: 1}, {"b": 2}]', TEXT),
        ("a.c", "{ int x; }", TEXT),
        ("a.py", '{"a": 1}["a"]\n', TEXT),
        ("notes.md", "text, more\n1, 2\n", TEXT),
    ],
)
def test_json_is_told_from_text_by_its_name_and_its_first_lines(tmp_path, name, contents, kind):
    (tmp_path / name).write_text(contents)
    assert identify(tmp_path / name, name).kind == kind


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4f2e\nsize 123\n"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.csv.gz", "a.json.zst", "a"])
@pytest.mark.parametrize("content", [LFS, "/annex/objects/SHA256E-s5--4f2e.txt\n"])
def test_a_pointer_in_place_of_a_file_is_never_text(tmp_path, name, content):
    folder = tmp_path / "in" / "it"
    folder.mkdir(parents=True)
    (folder / name).write_text(content)
    for source in every_way_to_name(folder / name):
        assert "a pointer of " in refusal(source)
    (folder / "text.txt").write_text("text")
    (folder / "more.txt").write_text("more")
    tally = Tally()
    assert read(folder, tally, format="text") == ["more", "text"]
    assert tally.lines()[1].startswith("WARNING: passed over: a pointer of ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.warc", b"WARC/1.0\r\nWARC-Type: conversion\r\n\r\ntext"),
        ("a.rtf", b"{\\rtf1\\ansi text}"),
        ("a.ps", b"%!PS-Adobe-3.0\n(text) show"),
    ],
)
def test_text_between_lines_for_programs_is_passed_over_unless_plain_text_is_asked_for(
    tmp_path, name, content
):
    for ending, compress in COMPRESSIONS.items():
        file = tmp_path / f"{name}{ending}"
        file.write_bytes(compress(content))
        assert "no text in it: " in refusal(file)
        assert read(file, format="text") == [content.decode()]


def test_a_text_about_a_format_is_a_text(tmp_path):
    for text in ("LZIP is a program", "Rar! is an archive", "SQLite is a library", "] and"):
        (tmp_path / "a.txt").write_text(text)
        assert read(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("name", ["a.jsonl.lzma", "a.txt.lz", "a.txt.br"])
def test_compressed_text_that_is_not_read_is_called_so(tmp_path, name):
    content = {
        "a.jsonl.lzma": lzma.compress(b'{"text": "one"}', format=lzma.FORMAT_ALONE),
        "a.txt.lz": b"LZIP\x01\x0c text",
        "a.txt.br": b"\x8b\x02\x80text\x03",
    }[name]
    (tmp_path / name).write_bytes(content)
    assert "which is not read" in refusal(tmp_path / name)


def test_the_url_of_a_file_on_this_machine_is_its_path(tmp_path):
    file, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    for scheme in ("file", "local"):
        file.write_text('{"text": "yesterday"}\n')
        assert read(f"{scheme}://{file}", cache=str(cache)) == ["yesterday"]
        file.write_text('{"text": "today, so"}\n')
        assert read(f"{scheme}://{file}", cache=str(cache)) == ["today, so"]
    other = tmp_path / "b.txt"
    other.write_text("b")
    assert read(f"file://{file}, file://{other}", cache=str(cache)) == ["today, so", "b"]
    assert not (cache / "downloads").exists()
