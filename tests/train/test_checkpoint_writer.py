"""Saving beside training: what is written is the state at the time, errors come out, and old checkpoints go."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from moebius.errors import CheckpointError, StorageError
from moebius.train import checkpoint
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.session import start
from moebius.train.state import TrainState


@pytest.fixture
def state(small) -> TrainState:
    return start(small, "small", lambda line: None).state


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "checkpoints"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def saved_steps(folder: Path) -> list[int]:
    return sorted(checkpoint.step_of(path) for path in checkpoint.complete(folder))


def save_steps(writer: CheckpointWriter, state: TrainState, steps: range) -> None:
    for step in steps:
        state.step = state.batch = step
        writer.save(state)


def test_training_goes_on_while_a_checkpoint_is_written(folder, state, monkeypatch):
    may_write = threading.Event()
    original = checkpoint.write

    def slow(*arguments: Any) -> Path:
        assert may_write.wait(timeout=30)
        return original(*arguments)

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


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(0, 0, [0, 1, 2, 3, 4, 5, 6]), (1, 0, [6]), (2, 0, [5, 6]), (2, 3, [0, 3, 5, 6]), (10, 0, [0, 1, 2, 3, 4, 5, 6])],
)
def test_old_checkpoints_go(folder, state, keep_last, keep_every, kept):
    with CheckpointWriter(folder, keep_last, keep_every) as writer:
        save_steps(writer, state, range(7))
    assert saved_steps(folder) == kept
    assert len(names(folder)) == len(kept)


def test_the_last_good_checkpoint_is_never_deleted(folder, state, monkeypatch):
    """What was just written cannot be read back as it was meant: nothing older goes."""
    original = checkpoint.write

    def spoiled(folder: Path, *arguments: Any) -> Path:
        original(folder, *arguments)
        if folder.name == "step-00000002":
            (folder / "model.safetensors").write_bytes(b"no")
        return folder

    monkeypatch.setattr(checkpoint, "write", spoiled)
    writer = CheckpointWriter(folder, keep_last=1, keep_every=0)
    save_steps(writer, state, range(3))
    with pytest.raises(StorageError, match=r"step-00000002.*older checkpoints are kept"):
        writer.wait()
    assert saved_steps(folder) == [1, 2]
    assert checkpoint.latest(folder, lambda line: None).name == "step-00000001"


def test_an_error_of_the_writer_comes_out_at_the_next_save(tmp_path, state):
    place = tmp_path / "place"
    place.write_text("in the way")
    writer = CheckpointWriter(place, keep_last=1, keep_every=0)
    writer.save(state)
    with pytest.raises(StorageError, match="could not be written") as refused:
        save_steps(writer, state, range(1, 2))
    assert refused.value.exit_code == 6
    place.unlink()
    save_steps(writer, state, range(2, 3))  # the next one may succeed
    writer.wait()
    assert saved_steps(place) == [2]


def test_an_error_of_the_last_save_comes_out_on_leaving(tmp_path, state):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError), CheckpointWriter(tmp_path / "file", keep_last=1, keep_every=0) as writer:
        writer.save(state)


def test_a_step_is_saved_once(folder, state):
    with CheckpointWriter(folder, keep_last=1, keep_every=0) as writer:
        writer.save(state)
        writer.wait()
        before = (folder / "step-00000000" / "manifest.json").stat().st_ino
        writer.save(state)
        writer.wait()
        assert (folder / "step-00000000" / "manifest.json").stat().st_ino == before


def test_what_a_killed_process_left_is_put_in_order(folder, state):
    with CheckpointWriter(folder, keep_last=0, keep_every=0) as writer:
        save_steps(writer, state, range(3))
    shutil.copytree(folder / "step-00000000", folder / ".step-00000005.partial")
    shutil.copytree(folder / "step-00000000", folder / ".step-00000000.deleted")
    (folder / "step-00000001").rename(folder / ".step-00000001.replaced")  # killed between the two renames
    shutil.copytree(folder / "step-00000002", folder / ".step-00000002.replaced")
    checkpoint.tidy(folder)
    assert names(folder) == ["step-00000000", "step-00000001", "step-00000002"]
    checkpoint.load(folder / "step-00000001")
    checkpoint.tidy(folder / "nowhere")


def test_later_checkpoints_are_discarded_and_not_looked_at(folder, state):
    with CheckpointWriter(folder, keep_last=0, keep_every=0) as writer:
        save_steps(writer, state, range(4))
    assert checkpoint.latest(folder, lambda line: None, up_to=2).name == "step-00000002"
    checkpoint.discard_after(folder, 1)
    assert names(folder) == ["step-00000000", "step-00000001"]
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        checkpoint.latest(folder, lambda line: None, up_to=-1)
