"""Saving that fails: a full disk, a killed process or a file in the way leaves no debris."""

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.errors import StorageError
from moebius.train import checkpoint
from tests.train.checkpoints import FILES, STATE, names_in, some_tensors


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
    checkpoint.save(folder, {"model": {"weight": torch.ones(2)}}, {"step": 8})
    loaded, state = checkpoint.load(folder)
    assert state == {"step": 8} and list(loaded) == ["model"]
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
