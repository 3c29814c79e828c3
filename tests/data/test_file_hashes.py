"""Any change of contents is noticed, whatever size and time stamp say, and none is imagined."""

import hashlib
import io
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from moebius.config import DataConfig
from moebius.data import file_hashes, prepare
from moebius.data.file_hashes import Remembered, _sha256
from moebius.data.formats import TEXT, Format, SourceFile, state_of
from moebius.data.prepare import is_prepared
from moebius.data.shards import ShardWriter, Split
from moebius.errors import DataError
from tests.data.corpora import configure, texts


def content_hashes(files: list[Path], cache: Path, source: str) -> list[str]:
    listed = [SourceFile(str(f), f.name, Format(TEXT), state_of(f)) for f in files]
    return Remembered(cache, source).content_hashes(listed)


@pytest.fixture
def counted(monkeypatch) -> list[Path]:
    """The files that are hashed, in order. Every file is old enough to be remembered."""
    monkeypatch.setattr(file_hashes, "RECENT_NS", -1)
    hashed: list[Path] = []
    original = file_hashes._sha256

    def sha256(file: str, is_stopped: threading.Event) -> str:
        hashed.append(Path(file))
        return original(file, is_stopped)

    monkeypatch.setattr(file_hashes, "_sha256", sha256)
    return hashed


def test_a_file_is_hashed_once_until_anything_about_it_changes(tmp_path, counted):
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_text(file.name)
    first = content_hashes(files, tmp_path / "cache", "source")
    assert content_hashes(files, tmp_path / "cache", "source") == first
    assert sorted(counted) == files
    state = files[0].stat()
    time.sleep(0.02)  # time stamps advance in steps of up to 10 ms
    files[0].write_text("c")
    os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    changed = content_hashes(files, tmp_path / "cache", "source")
    assert changed[0] != first[0] and changed[1] == first[1]
    assert len(counted) == 3


def test_a_file_that_was_just_written_is_not_remembered(tmp_path):
    file = tmp_path / "a"
    file.write_text("a")
    first = content_hashes([file], tmp_path / "cache", "source")
    file.write_text("b")  # perhaps in the same tick of the clock
    assert content_hashes([file], tmp_path / "cache", "source") != first
    assert not (tmp_path / "cache").exists()


def test_a_damaged_record_and_a_cache_that_cannot_be_written_do_no_harm(tmp_path, counted):
    file = tmp_path / "a"
    file.write_text("a")
    first = content_hashes([file], tmp_path / "cache", "source")
    (record,) = (tmp_path / "cache").rglob("*.json")
    for damage in ("", "[]", "{", f'{{"{file}": 3}}', f'{{"{file}": []}}'):
        record.write_text(damage)
        assert content_hashes([file], tmp_path / "cache", "source") == first
    assert content_hashes([file], file / "no folder", "source") == first


@pytest.mark.parametrize("recent_ns", [-1, file_hashes.RECENT_NS])
@pytest.mark.parametrize("how", ["in place", "replaced", "copied with its time stamp"])
def test_other_text_of_the_same_size_and_time_stamp_is_prepared_anew(
    source, monkeypatch, how, recent_ns
):
    monkeypatch.setattr(file_hashes, "RECENT_NS", recent_ns)
    config = configure(source)
    old = prepare(config, 257)
    state = source.stat()
    new = source.read_bytes().replace(b"document 7", b"dOCUMENT 7")
    time.sleep(0.02)
    if how == "in place":
        source.write_bytes(new)
    else:
        other = source.with_name("other")
        other.write_bytes(new)
        os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
        if how == "replaced":
            other.replace(source)
        else:
            shutil.copy2(other, source)
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert source.stat().st_size == state.st_size
    assert source.stat().st_mtime_ns == state.st_mtime_ns
    assert not is_prepared(config, 257)
    corpus = prepare(config, 257)
    assert corpus.identity != old.identity
    assert any("dOCUMENT 7" in text for text in texts(corpus, corpus.train))


def test_the_same_text_in_another_place_or_with_another_time_stamp_is_found_again(
    source, tmp_path
):
    config = configure(source, tokenizer="bpe")
    folders = prepare(config, 300).folders
    os.utime(source, (1, 1))
    assert is_prepared(config, 300)
    moved = tmp_path / "elsewhere" / source.name
    moved.parent.mkdir()
    source.rename(moved)
    again = DataConfig(
        source=str(moved), tokenizer="bpe", val_fraction=config.val_fraction, cache=config.cache
    )
    assert is_prepared(again, 300)
    assert prepare(again, 300).folders == folders


def test_a_file_that_changes_while_it_is_read_is_an_error(source, monkeypatch):
    original = ShardWriter.finish

    def change(self: ShardWriter) -> Split:
        source.write_text(source.read_text() + '{"text": "late"}\n')
        return original(self)

    monkeypatch.setattr(ShardWriter, "finish", change)
    with pytest.raises(DataError, match="its files changed while they were read"):
        prepare(configure(source), 257)
    monkeypatch.undo()
    assert prepare(configure(source), 257).train.num_documents > 150


def test_a_prepared_folder_is_found_again_with_one_look_at_each_file(source, monkeypatch):
    monkeypatch.setattr(file_hashes, "RECENT_NS", -1)
    files = [source.parent / "inner" / name for name in ("a.txt", "b.txt", "picture.png")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(b"\x89PNG" if file.suffix == ".png" else file.name.encode())
    config = configure(source, source=str(source.parent), tokenizer="bpe")
    prepare(config, 300)
    looked: list[str] = []
    opened: list[str] = []

    def noted(name: str, log: list[str]) -> None:
        function = getattr(os if name == "stat" else io, name)

        def call(path, *arguments, **named):
            log.append(str(path))
            return function(path, *arguments, **named)

        monkeypatch.setattr(os if name == "stat" else io, name, call)

    noted("stat", looked)
    noted("open", opened)
    assert is_prepared(config, 300)
    for file in (source, *files):
        assert looked.count(str(file)) == 1
        assert str(file) not in opened
    files[1].write_text("other")
    assert not is_prepared(config, 300)
    assert str(files[1]) in opened
    assert str(files[0]) not in opened


def test_what_a_file_is_is_asked_again_if_rows_are_to_be_read_as_text(source, monkeypatch):
    monkeypatch.setattr(file_hashes, "RECENT_NS", -1)
    config = configure(source)
    rows = prepare(config, 257).train.num_documents
    assert prepare(configure(source, format="text"), 257).train.num_documents < rows
    assert prepare(config, 257).train.num_documents == rows


@pytest.mark.parametrize("most", [1, 1000, 2**30])
def test_a_file_is_hashed_to_its_end_however_little_the_system_reads_at_once(
    tmp_path, monkeypatch, most
):
    class Slow(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            return super().read(min(size, most))

    file = tmp_path / "a"
    monkeypatch.setattr(file_hashes, "SMALL_BYTES", 2000)
    monkeypatch.setattr("builtins.open", lambda name, *_, **__: Slow(name))
    for size in (0, 1, 1999, 2000, 2001, 4000, 9000):
        file.write_bytes(os.urandom(size))
        content = file.read_bytes()
        assert _sha256(str(file), threading.Event()) == hashlib.sha256(content).hexdigest()
