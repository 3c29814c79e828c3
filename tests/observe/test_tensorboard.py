"""What TensorBoard reads back."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moebius.errors import StorageError
from moebius.observe.tensorboard import TensorBoard, scalars


def line(step: int, **changes: Any) -> dict[str, Any]:
    return {"step": step, "loss": 2.5 / step, "dead_experts": [0, 1], "tokens_per_expert": [[3, 5], []], **changes}


def write(folder: Path, steps: range, resume_step: int = 0, **changes: Any) -> None:
    board = TensorBoard(folder, resume_step)
    for step in steps:
        board.write(line(step, **changes), wall_time=1000.0 + step)
    board.close()


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value by tag."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags: list[str] = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def test_tags_are_names_layers_and_experts():
    metrics = {
        "step": 3,
        "tokens": 12,
        "loss": 2.5,
        "cv": [0.1, 0.2],
        "mean_gate": [None, 0.5],
        "tokens_per_expert": [[], [3, 5]],
        "dead_experts": [0] * 11,
    }
    assert scalars(metrics) == {
        "tokens": 12.0,
        "loss": 2.5,
        "cv/layer_00": 0.1,
        "cv/layer_01": 0.2,
        "mean_gate/layer_01": 0.5,
        "tokens_per_expert/layer_01/0": 3.0,
        "tokens_per_expert/layer_01/1": 5.0,
    } | {f"dead_experts/layer_{layer:02d}": 0.0 for layer in range(11)}


def test_what_is_written_is_read_back(tmp_path: Path):
    write(tmp_path / "tb", range(1, 4), mean_gate=[None, 0.25], tokens=1_000)
    found = read(tmp_path / "tb")
    assert found.keys() == {
        "loss", "tokens", "dead_experts/layer_00", "dead_experts/layer_01", "mean_gate/layer_01",
        "tokens_per_expert/layer_00/0", "tokens_per_expert/layer_00/1",
    }  # fmt: skip
    assert found["loss"] == [(step, pytest.approx(2.5 / step)) for step in (1, 2, 3)]  # kept as float32
    assert found["tokens_per_expert/layer_00/1"] == [(1, 5.0), (2, 5.0), (3, 5.0)]
    assert found["mean_gate/layer_01"] == [(step, 0.25) for step in (1, 2, 3)]
    assert found["tokens"][-1] == (3, 1000.0)


def test_the_time_is_the_one_given(tmp_path: Path):
    write(tmp_path, range(5, 6))
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [event.wall_time for event in accumulator.Scalars("loss")] == [1005.0]


def test_resuming_shows_every_step_once(tmp_path: Path):
    write(tmp_path, range(1, 10), note=1.0)
    write(tmp_path, range(7, 12), resume_step=6, note=2.0)  # the checkpoint is of step 6
    found = read(tmp_path)
    assert found["note"] == [(step, 1.0 if step <= 6 else 2.0) for step in range(1, 12)]
    assert [step for step, _ in found["loss"]] == list(range(1, 12))


def test_resuming_takes_away_what_is_not_written_again(tmp_path: Path):
    write(tmp_path, range(1, 10))
    write(tmp_path, range(0), resume_step=4)
    assert [step for step, _ in read(tmp_path)["loss"]] == [1, 2, 3, 4]


def test_a_figure_that_is_not_finite_is_written(tmp_path: Path):
    write(tmp_path, range(1, 2), loss=float("inf"))
    assert read(tmp_path)["loss"] == [(1, float("inf"))]


def test_a_place_that_cannot_be_written_is_an_error_of_exit_code_6(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/tb: Not a directory") as refused:
        TensorBoard(tmp_path / "file" / "tb")
    assert refused.value.exit_code == 6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_named_and_stays_the_error_when_the_writer_is_closed(tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    board = TensorBoard(tmp_path)
    # what TensorBoard writes it writes in a thread of its own
    records = board._writer._async_writer._writer
    monkeypatch.setattr(records, "write", full)
    monkeypatch.setattr(records, "flush", full)
    with pytest.raises(StorageError, match="No space left on device") as refused:
        for step in range(1, 100):
            board.write(line(step), wall_time=0.0)
            time.sleep(0.01)
    assert refused.value.exit_code == 6
    board.close()
