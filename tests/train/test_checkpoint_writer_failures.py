"""Whatever ends a run, the checkpoints that could not be written are reported beside it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from moebius.config import Config
from moebius.errors import DataError, Interrupted, NumericError, StorageError
from moebius.model.transformer import seeded
from moebius.train import checkpoint
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.state import TrainState
from tests.train.checkpoints import names_in


@pytest.fixture
def state(small: Config) -> TrainState:
    """The state of a run before its first step."""
    return TrainState.new(seeded(0, small.model), small)


@pytest.fixture
def writer(tmp_path, state, monkeypatch) -> CheckpointWriter:
    """A writer that has saved step 3; the disk is full at steps 6, 7 and 12."""
    write_tensors = checkpoint._write_tensors

    def failing(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
        if any(f"step-{step:08d}" in path.parent.name for step in (6, 7, 12)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "_write_tensors", failing)
    writer = CheckpointWriter(tmp_path / "checkpoints", keep_last=0, keep_every=0)
    save(writer, state, 3)
    writer.wait()
    return writer


def save(writer: CheckpointWriter, state: TrainState, step: int) -> None:
    state.step = state.sequences = step
    writer.save(state)


def full(step: int) -> str:
    """Return how the line about a step that could not be written begins."""
    return f"step-{step:08d}: the checkpoint could not be written: No space left on device; "


@pytest.mark.parametrize(
    "error",
    [
        NumericError("not finite"),
        DataError("a shard is missing"),
        KeyboardInterrupt(),
        RuntimeError("a bug"),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_code_and_gets_the_failure_as_a_note(writer, state, error):
    with pytest.raises(type(error)) as raised, writer:
        save(writer, state, 6)
        raise error
    failure, good = raised.value.__notes__
    assert raised.value is error
    assert full(6) in failure and "\n" not in failure
    assert good == "the last good checkpoint is step 3"


def test_a_failure_of_the_last_save_is_raised_with_the_last_good_checkpoint(writer, state):
    with pytest.raises(StorageError, match=full(6)) as raised, writer:
        save(writer, state, 6)
    assert raised.value.__notes__ == ["the last good checkpoint is step 3"]


def test_a_failure_in_waiting_is_not_its_own_note(writer, state):
    with pytest.raises(StorageError, match=full(6)) as raised, writer:
        save(writer, state, 6)
        writer.wait()
    assert raised.value.__notes__ == ["the last good checkpoint is step 3"]


def test_an_error_without_a_failure_gets_the_last_good_checkpoint(writer, state):
    with pytest.raises(NumericError) as raised, writer:
        save(writer, state, 5)
        raise NumericError("not finite")
    assert raised.value.__notes__ == ["the last good checkpoint is step 5"]


def test_before_the_first_checkpoint_there_is_none(tmp_path):
    writer = CheckpointWriter(tmp_path / "checkpoints", keep_last=1, keep_every=0)
    with pytest.raises(NumericError) as raised, writer:
        raise NumericError("not finite")
    assert raised.value.__notes__ == ["there is no checkpoint yet"]
    assert writer.last_good() == "there is no checkpoint yet"


def test_an_interruption_that_saved_its_state_gets_no_note(writer, state):
    with pytest.raises(Interrupted) as raised, writer:
        raise Interrupted("stopped at step 3, state saved", 15)
    assert not hasattr(raised.value, "__notes__")


def test_the_state_at_the_end_is_saved_although_an_earlier_one_was_not(writer, state):
    with pytest.raises(StorageError, match=full(6)) as raised, writer:
        save(writer, state, 6)
        save(writer, state, 9)
    assert raised.value.__notes__ == ["the last good checkpoint is step 9"]
    assert checkpoint.load(writer.checkpoints / "step-00000009")[1]["step"] == 9


def test_two_failures_are_both_reported(writer, state):
    with pytest.raises(StorageError, match=full(7)) as raised, writer:
        save(writer, state, 6)
        save(writer, state, 7)
    failure, good = raised.value.__notes__
    assert full(6) in failure and good == "the last good checkpoint is step 3"
    assert names_in(writer.checkpoints) == ["step-00000003"]


def test_a_step_that_could_not_be_saved_is_tried_again(writer, state, monkeypatch):
    save(writer, state, 6)
    with pytest.raises(StorageError):
        writer.wait()
    monkeypatch.undo()  # there is space again
    with writer:
        save(writer, state, 6)
    assert checkpoint.load(writer.checkpoints / "step-00000006")[1]["step"] == 6


def test_a_bug_in_writing_is_reported_too(writer, state, monkeypatch):
    def broken(*_: Any) -> None:
        raise TypeError("not\nserializable")

    monkeypatch.setattr(checkpoint, "write", broken)
    with pytest.raises(NumericError) as raised, writer:
        save(writer, state, 9)
        raise NumericError("not finite")
    assert raised.value.__notes__ == [
        "TypeError: not serializable",
        "the last good checkpoint is step 3",
    ]
