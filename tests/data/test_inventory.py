"""The files of a source are found and looked at, and each that cannot be is named."""

import errno
import os

import pytest

from moebius.config import DataConfig
from moebius.data import inventory as inventory_module
from moebius.data.formats import state_of
from moebius.data.inventory import inventory
from moebius.data.source_names import weighted_sources
from moebius.data.sources import Document, documents
from moebius.data.tally import Tally
from moebius.errors import MoebiusError, StorageError


def read(source: object, tally: Tally | None = None, **settings) -> list[Document]:
    return list(documents(DataConfig(source=str(source), **settings), tally))


def test_hugging_face_rows_have_no_local_files_unless_a_folder_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    files = inventory(DataConfig(source=f"hf:{tmp_path}")).files
    assert [file.path for file in files] == [tmp_path / "a.jsonl"]
    assert inventory(DataConfig(source="hf:someone/something")).files == []


def test_a_path_that_cannot_be_looked_at_is_named_itself(tmp_path):
    long = f"{tmp_path}/{'x' * 300}"
    for source in (long, f"hf:{long}", f"{long}/a.txt"):
        with pytest.raises(MoebiusError) as caught:
            read(source)
        assert "state.json" not in str(caught.value)
        assert source.removeprefix("hf:") in str(caught.value)
    with pytest.raises(MoebiusError):
        weighted_sources(DataConfig(source=f"{long},{long}/a"))
        read(long)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_in_a_folder_that_cannot_be_entered_is_named_itself(tmp_path):
    file = tmp_path / "no" / "s.txt"
    file.parent.mkdir()
    file.write_text("text")
    file.parent.chmod(0)
    try:
        with pytest.raises(StorageError, match=r"no/s\.txt: Permission denied"):
            read(file)
        weighted_sources(DataConfig(source=f"{file},b"))
    finally:
        file.parent.chmod(0o700)


@pytest.mark.parametrize("errors", ["stop", "skip"])
def test_a_file_that_vanishes_while_files_are_looked_at_is_an_error(tmp_path, monkeypatch, errors):
    file = tmp_path / "a.txt"
    file.write_text("a")
    monkeypatch.setattr(inventory_module, "state_of", lambda path: file.unlink() or state_of(path))
    with pytest.raises(StorageError, match=r"a\.txt: No such file or directory; it was there"):
        read(tmp_path, errors=errors)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_opened_is_like_a_document_that_cannot_be_read(
    tmp_path, monkeypatch, number
):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    original = open

    def refusing(path: str, *arguments, **named):
        if str(path).endswith("b.txt"):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *arguments, **named)

    monkeypatch.setattr("builtins.open", refusing)
    message = rf"b\.txt: {os.strerror(number)}; .*leave out such files with --data\.errors skip"
    with pytest.raises(StorageError, match=message) as caught:
        read(tmp_path)
    assert caught.value.exit_code == 6
    tally = Tally()
    assert [document.text for document in read(tmp_path, tally, errors="skip")] == [
        "a.txt",
        "c.txt",
    ]
    assert tally.count == 1
    assert tally.first == f"{tmp_path}/b.txt: {os.strerror(number)}"
