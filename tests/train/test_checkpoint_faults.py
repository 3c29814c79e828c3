"""Saving that fails: a full disk, a killed process or a file in the way leaves no debris."""

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.errors import CheckpointError, StorageError
from moebius.train import checkpoint
from tests.train.checkpoints import FILES, STATE, lie, names_in, some_tensors


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing_call", range(1, 7))
def test_a_full_disk_leaves_no_debris_and_the_earlier_checkpoint(
    tmp_path, monkeypatch, failing_call
):
    """The five files of a checkpoint are synced, and so is their folder."""
    earlier = checkpoint.save(tmp_path / "step-00000007", {"model": {}}, {"step": 7})
    calls, fsync = [], os.fsync

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing_call:
            raise full_disk()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match="No space left on device") as refusal:
        checkpoint.save(tmp_path / "step-00000008", some_tensors(), STATE)
    line = str(refusal.value)
    assert refusal.value.exit_code == 6 and "\n" not in line and "step-00000008" in line
    assert names_in(tmp_path) == ["step-00000007"]
    assert checkpoint.load(earlier)[1] == {"step": 7}


def test_a_full_disk_stops_all_files_of_a_large_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PART_BYTES", 100)
    write_tensors = checkpoint._write_tensors

    def failing(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        if ".3." in path.name:
            raise full_disk()
        return write_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "_write_tensors", failing)
    groups = {"model": {f"w{index}": torch.ones(25) for index in range(9)}}
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoint.save(tmp_path / "step-00000001", groups, {})
    assert names_in(tmp_path) == []


def test_a_real_limit_on_file_size_leaves_no_debris(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    groups = {"model": {"weight": torch.zeros(10_000)}}
    try:
        with pytest.raises(StorageError, match="File too large"):
            checkpoint.save(tmp_path / "step-00000001", groups, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == []


def test_a_file_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(StorageError, match="step-00000001"):
        checkpoint.save(tmp_path / "checkpoints" / "step-00000001", {}, {})


def test_a_state_that_is_no_json_leaves_no_debris(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "step-00000001", {}, {"path": tmp_path})
    assert names_in(tmp_path) == []


def test_files_of_a_killed_process_are_cleared_away(tmp_path):
    (tmp_path / ".step-00000007.partial").mkdir()
    (tmp_path / ".step-00000007.partial" / "unknown.safetensors").write_bytes(b"half")
    folder = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    assert names_in(tmp_path) == ["step-00000007"] and names_in(folder) == sorted(FILES)


def test_saving_again_replaces_the_checkpoint(tmp_path):
    folder = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    checkpoint.save(folder, {"model": {"weight": torch.ones(2)}}, {"step": 7, "tokens": 8})
    loaded, state = checkpoint.load(folder)
    assert state == {"step": 7, "tokens": 8} and list(loaded) == ["model"]
    assert names_in(tmp_path) == ["step-00000007"]


def test_a_replacement_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    folder = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError, match="Permission denied"):
        checkpoint.save(folder, {}, {})
    assert checkpoint.load(folder)[1] == STATE and names_in(tmp_path) == ["step-00000007"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_the_manifest_is_last_and_everything_is_synced_before_the_rename(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    checkpoint.save(tmp_path / "step-00000001", some_tensors(), STATE)
    assert events == [*FILES, ".step-00000001.partial", "rename", tmp_path.name]


KINDS = ["flip", "zeros", "truncate", "lengthen", "nothing"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", KINDS)
def test_what_the_disk_did_not_store_is_an_error_that_names_it(tmp_path, monkeypatch, name, how):
    earlier = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    lie(monkeypatch, name, how)
    with pytest.raises(
        StorageError, match=r"step-00000008.*older checkpoints are kept"
    ) as refusal:
        checkpoint.save(tmp_path / "step-00000008", some_tensors(), STATE)
    line = str(refusal.value)
    assert name in line and "\n" not in line and checkpoint.ADVICE not in line
    assert names_in(tmp_path) == ["step-00000007", "step-00000008.damaged"]
    assert sorted(names_in(tmp_path / "step-00000008.damaged")) == sorted(FILES)
    checkpoint.load(earlier)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", FILES)
def test_a_replacement_that_the_disk_did_not_store_leaves_the_old_one(tmp_path, monkeypatch, name):
    folder = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    (tmp_path / "step-00000007.damaged").write_text("of an earlier time")
    with monkeypatch.context() as patched:
        lie(patched, name, "flip")
        with pytest.raises(StorageError, match=r"set aside as step-00000007\.damaged-2"):
            checkpoint.save(folder, some_tensors(), STATE | {"step": 8})
    assert checkpoint.load(folder)[1] == STATE
    assert names_in(tmp_path) == [
        folder.name,
        f"{folder.name}.damaged",
        f"{folder.name}.damaged-2",
    ]
    assert (tmp_path / "step-00000007.damaged").read_text() == "of an earlier time"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_the_manifest_of_other_files_is_not_what_was_written(tmp_path, monkeypatch):
    """A consistent checkpoint is read back, but it is an earlier one: every write was lost."""
    earlier = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    fsync = os.fsync

    def lying(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name in FILES:
            path.write_bytes((earlier / path.name).read_bytes())

    monkeypatch.setattr(os, "fsync", lying)
    with pytest.raises(StorageError, match=r"step-00000008/manifest\.json: altered"):
        checkpoint.save(tmp_path / "step-00000008", {"model": {"weight": torch.ones(2)}}, {})


def test_a_full_disk_at_the_last_sync_leaves_what_was_there(tmp_path, monkeypatch):
    """The folder of the checkpoints is synced after the rename, which is then undone."""
    folder = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    sync_folder = checkpoint.sync

    def failing(path: Path) -> None:
        if path == tmp_path:
            raise full_disk()
        sync_folder(path)

    monkeypatch.setattr(checkpoint, "sync", failing)
    for step in (7, 8):
        with pytest.raises(StorageError, match="No space left on device"):
            checkpoint.save(tmp_path / f"step-{step:08d}", {}, {})
    assert names_in(tmp_path) == ["step-00000007"] and checkpoint.load(folder)[1] == STATE


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_file_or_a_link_of_that_name_is_replaced(tmp_path, make):
    make(tmp_path / "step-00000007")
    make(tmp_path / ".step-00000007.partial")
    make(tmp_path / ".step-00000007.replaced")
    folder = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    assert checkpoint.load(folder)[1] == STATE and names_in(tmp_path) == [folder.name]


@pytest.mark.parametrize("name", FILES)
def test_only_a_folder_with_all_files_of_the_right_size_seems_whole(tmp_path, name):
    folder = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    assert checkpoint.seems_whole(folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    assert not checkpoint.seems_whole(folder)
    (folder / name).unlink()
    assert not checkpoint.seems_whole(folder)
    assert not checkpoint.seems_whole(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "contents",
    [
        b"[" * 200_000,
        b"9" * 10_000,
        b"[]",
        b"null",
        b"\xff",
        b'{"step": 1',
    ],
    ids=["nested too deeply", "number too long", "list", "null", "not UTF-8", "cut short"],
)
def test_a_state_that_is_no_object_is_refused_whatever_its_hash(tmp_path, monkeypatch, contents):
    write = checkpoint._write
    monkeypatch.setattr(
        checkpoint,
        "_write",
        lambda path, data: write(path, contents if path.name == "state.json" else data),
    )
    folder = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    with pytest.raises(
        CheckpointError, match=r"state\.json: (not a JSON object|cannot be parsed)"
    ):
        checkpoint.load(folder)
