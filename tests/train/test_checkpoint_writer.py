"""Saving during training: the state at that time is saved, and errors are raised later."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from moebius.config import Config
from moebius.errors import StorageError
from moebius.model.transformer import seeded
from moebius.parallel.process import Process
from moebius.train import checkpoint, checkpoint_store
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.state import TrainState
from tests.train.checkpoints import names_in
from tests.train.runs import silent


@pytest.fixture
def state(small: Config) -> TrainState:
    """The state of a run before its first step."""
    return TrainState.new(seeded(0, small.model), small)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of the run's checkpoints, which does not exist yet."""
    return tmp_path / "checkpoints"


def saved_steps(folder: Path) -> list[int]:
    return sorted(checkpoint_store.step_of(path) for path in checkpoint_store.complete(folder))


def save_steps(writer: CheckpointWriter, state: TrainState, steps: range) -> None:
    """Save the same weights as checkpoints of several steps."""
    for step in steps:
        state.step = state.sequences = step
        writer.save(state)


def test_training_goes_on_while_a_checkpoint_is_written(folder, state, monkeypatch):
    may_write = threading.Event()
    write = checkpoint.write

    def slow(*arguments: Any) -> Path:
        assert may_write.wait(timeout=30)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", slow)
    weight = state.model.lm_head.weight
    before = weight.detach().clone()
    with CheckpointWriter(folder, keep_last=3, keep_every=0) as writer:
        writer.save(state)
        with torch.no_grad():
            weight.zero_()
        state.aux_levels[0] = 3
        assert not saved_steps(folder)
        may_write.set()
    tensors, values = checkpoint.load(folder / "step-00000000")
    assert torch.equal(tensors["model"]["lm_head.weight"], before)
    assert values["aux_levels"][0] == 0


def test_memory_is_used_again(folder, state):
    with CheckpointWriter(folder, keep_last=0, keep_every=0) as writer:
        writer.save(state)
        first = writer._copies["model"]["lm_head.weight"]
        save_steps(writer, state, range(1, 2))
        assert writer._copies["model"]["lm_head.weight"] is first


def test_old_checkpoints_go(folder, state):
    with CheckpointWriter(folder, keep_last=2, keep_every=3) as writer:
        save_steps(writer, state, range(7))
    assert saved_steps(folder) == [0, 3, 5, 6]
    assert len(names_in(folder)) == 4


def test_the_last_good_checkpoint_is_never_deleted(folder, state, monkeypatch):
    """If the checkpoint just written cannot be read back, no older one is deleted."""
    write_tensors = checkpoint._write_tensors

    def spoiled(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
        entry = write_tensors(path, tensors)
        if "step-00000002" in path.parent.name and path.name == "model.safetensors":
            path.write_bytes(b"no")
        return entry

    monkeypatch.setattr(checkpoint, "_write_tensors", spoiled)
    writer = CheckpointWriter(folder, keep_last=1, keep_every=0)
    save_steps(writer, state, range(3))
    with pytest.raises(StorageError, match=r"step-00000002.*older checkpoints are kept"):
        writer.wait()
    assert saved_steps(folder) == [1] and "step-00000002.damaged" in names_in(folder)
    assert checkpoint_store.latest(folder, silent).name == "step-00000001"


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_a_damaged_checkpoint_of_a_later_step_does_not_end_a_run(folder, state, keep_last):
    """What was just written is what is read back, and not whatever has the highest number."""
    with CheckpointWriter(folder, keep_last=0, keep_every=0) as writer:
        save_steps(writer, state, range(3, 10, 3))
    newest = folder / "step-00000009" / "model.safetensors"
    newest.write_bytes(bytes(newest.stat().st_size))
    with CheckpointWriter(folder, keep_last=keep_last, keep_every=0) as writer:
        save_steps(writer, state, range(8, 9))
    checkpoint.load(folder / "step-00000008")
    assert {8, *(9, 8, 6)[:keep_last]} == set(saved_steps(folder))


def test_an_old_checkpoint_that_cannot_be_deleted_is_a_storage_error(folder, state, monkeypatch):
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target.suffix == checkpoint_store.DELETED:
            raise OSError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    writer = CheckpointWriter(folder, keep_last=1, keep_every=0)
    save_steps(writer, state, range(2))
    match = "step-00000000: Permission denied; it could not be deleted"
    with pytest.raises(StorageError, match=match):
        writer.wait()
    assert saved_steps(folder) == [0, 1]


def test_an_error_of_the_writer_comes_out_at_the_next_save(folder, state):
    folder.write_text("in the way")
    writer = CheckpointWriter(folder, keep_last=1, keep_every=0)
    writer.save(state)
    with pytest.raises(StorageError, match="could not be written") as refusal:
        save_steps(writer, state, range(1, 2))
    assert refusal.value.exit_code == 6
    folder.unlink()
    save_steps(writer, state, range(2, 3))  # the next one may succeed
    writer.wait()
    assert saved_steps(folder) == [2]


def test_an_error_of_the_last_save_comes_out_on_leaving(folder, state):
    folder.touch()
    with (
        pytest.raises(StorageError),
        CheckpointWriter(folder, keep_last=1, keep_every=0) as writer,
    ):
        writer.save(state)


def test_a_step_is_saved_once(folder, state):
    manifest = folder / "step-00000000" / "manifest.json"
    with CheckpointWriter(folder, keep_last=1, keep_every=0) as writer:
        writer.save(state)
        writer.wait()
        before = manifest.stat().st_ino
        writer.save(state)
        writer.wait()
        assert manifest.stat().st_ino == before


def test_the_same_step_is_saved_again_after_a_roll_back(folder, state):
    """The number of the step is the same as before, but the next sequence is not."""
    with CheckpointWriter(folder, keep_last=0, keep_every=0) as writer:
        save_steps(writer, state, range(1))
        state.sequences = 3
        writer.save(state)
    assert checkpoint.load(folder / "step-00000000")[1]["sequences"] == 3


def test_a_process_that_does_not_write_saves_nothing(folder, state):
    peer = Process(rank=1, world_size=2)
    with CheckpointWriter(folder, keep_last=1, keep_every=0, process=peer) as writer:
        save_steps(writer, state, range(3))
        writer.wait()
    assert not folder.exists()
