"""Folders that `save_to_disk` wrote, as a folder, by globs and at a URL."""

import json
from pathlib import Path

import fsspec
import pytest

from moebius.config import DataConfig
from moebius.data.saved_sets import STRANGE_FILE
from moebius.data.sources import documents
from moebius.data.tally import METADATA, Tally
from moebius.errors import DataError

datasets = pytest.importorskip("datasets")  # large, and not everywhere

TRAIN, TEST = [f"train {n}" for n in range(30)], [f"test {n}" for n in range(5)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with one split, several splits with and without `train`."""
    folder = tmp_path_factory.mktemp("saved")
    train = datasets.Dataset.from_dict({"text": TRAIN, "id": range(30)})
    test = datasets.Dataset.from_dict({"text": TEST, "id": range(5)})
    datasets.disable_progress_bars()
    train.save_to_disk(folder / "one", num_shards=3)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(folder / "splits")
    datasets.DatasetDict({"a": train, "b": test}).save_to_disk(folder / "languages")
    return folder


def read(source: object, tally: Tally | None = None, **settings) -> list[str]:
    return [
        document.text for document in documents(DataConfig(source=str(source), **settings), tally)
    ]


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("one", TRAIN),
        ("one/*", TRAIN),
        ("one/*.arrow", TRAIN),
        ("o*", None),
        ("splits", TRAIN),
        ("splits/train", TRAIN),
        ("splits/**", TRAIN),
        ("splits/*/*.arrow", TRAIN),
        ("splits/test", TEST),
        ("splits/test/*", TEST),
        ("languages", TRAIN + TEST),
        (".", TRAIN + TEST + TRAIN + TRAIN),
    ],
)
def test_rows_are_read_and_the_metadata_is_not(saved, monkeypatch, source, texts):
    monkeypatch.chdir(saved)  # where names are relative
    for name in (source, saved / source):
        if texts is None:
            with pytest.raises(DataError, match="folder that this glob does not enter"):
                read(name)
        else:
            assert read(name) == texts


def test_what_is_not_read_is_counted(saved):
    tally = Tally()
    read(saved / "splits", tally)
    reasons = {reason: files.count for reason, files in tally.passed_over.items()}
    of_test = "of the split 'test' of a saved data set, of which only train is read"
    assert reasons == {METADATA: 5, of_test: 1}
    assert "WARNING" not in " ".join(tally.lines())


def test_a_copy_at_a_url_is_read_like_the_folder(saved, tmp_path):
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    system.put(str(saved / "splits"), "/bucket/splits", recursive=True)
    assert read("memory://bucket/splits", cache=str(tmp_path)) == TRAIN
    assert read("memory://bucket/splits/test", cache=str(tmp_path)) == TEST


def test_a_missing_part_is_an_error_and_a_cached_result_is_not_read(saved, tmp_path):
    system = fsspec.filesystem("file")
    system.copy(str(saved / "one"), str(tmp_path / "copy"), recursive=True)
    second = tmp_path / "copy" / "data-00001-of-00003.arrow"
    (tmp_path / "copy" / "cache-0123.arrow").write_bytes(second.read_bytes())
    tally = Tally()
    assert read(tmp_path / "copy", tally) == TRAIN
    assert tally.passed_over[STRANGE_FILE].count == 1
    second.unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00003\.arrow: missing, but state\.json"):
        read(tmp_path / "copy")


def test_files_of_those_names_that_belong_to_no_data_set_are_read(tmp_path):
    for name in ("state.json", "dataset_info.json", "dataset_dict.json"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    assert read(tmp_path) == ["dataset_dict.json", "dataset_info.json", "state.json"]


def test_a_table_of_indices_of_an_old_version_is_refused(saved, tmp_path):
    fsspec.filesystem("file").copy(str(saved / "one"), str(tmp_path / "old"), recursive=True)
    state = tmp_path / "old" / "state.json"
    values = json.loads(state.read_text()) | {"_indices_data_files": [{"filename": "i.arrow"}]}
    state.write_text(json.dumps(values))
    with pytest.raises(DataError, match="a table of indices; load it and save it again"):
        read(tmp_path / "old")


def test_special_characters_of_globs_in_a_name_are_only_characters(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a[1]", "b*", "c?"):
        fsspec.filesystem("file").copy(str(saved / "splits"), f"ds/{name}", recursive=True)
        assert read(f"ds/{name}/test") == TEST
        assert read(f"hf:ds/{name}/test") == TEST
        assert read(f"ds/{name}") == TRAIN
