"""TensorBoard shows each step once, under tags for layers and experts."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moebius.errors import StorageError
from moebius.observe.tensorboard import FOLDER, TensorBoard
from tests.observe.made_up import HEALTHY, metrics_of


def write(run: Path, steps: range, resume_step: int = 0, **changes: Any) -> None:
    """Write steps with a falling loss, as a run does that continues from a checkpoint."""
    board = TensorBoard()
    board.open(run, resume_step)
    for step in steps:
        loss = {"loss": 2.5 / step} | changes
        board.write(metrics_of(step=step, **loss), wall_time=1000.0 + step)
    board.close()


def read(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values by tag, as TensorBoard shows them."""
    accumulator = EventAccumulator(str(run / FOLDER), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags: list[str] = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def test_tags_are_names_layers_and_experts(tmp_path: Path):
    write(tmp_path, range(3, 4))
    plain = {name for name, value in HEALTHY.items() if not isinstance(value, list)} - {"step"}
    layered = {name for name, value in HEALTHY.items() if isinstance(value, list)}
    tags = plain | {
        f"{name}/layer_{layer:02d}"
        for name in layered - {"tokens_per_expert"}
        for layer, value in enumerate(HEALTHY[name])
        if value is not None
    }
    tags |= {
        f"tokens_per_expert/layer_{layer}/{expert}"
        for layer in ("00", "02")
        for expert in range(3)
    }
    assert read(tmp_path).keys() == tags


def test_what_is_written_is_read_back(tmp_path: Path):
    write(tmp_path, range(1, 4), mean_gate=[None, 0.25, 0.5], tokens=1_000)
    values = read(tmp_path)
    assert values["loss"] == [(step, pytest.approx(2.5 / step)) for step in (1, 2, 3)]  # float32
    assert values["tokens_per_expert/layer_00/1"] == [(1, 40.0), (2, 40.0), (3, 40.0)]
    assert values["mean_gate/layer_01"] == [(step, 0.25) for step in (1, 2, 3)]
    assert values["tokens"][-1] == (3, 1000.0)


def test_figures_of_offsets_and_sources_have_tags(tmp_path: Path):
    source = {"share": 0.5, "loss": 2.0, "bpb": None, "tokens": 10}
    offsets = {"mtp_loss_2": 1.0, "mtp_loss_3": 3.0, "mtp_loss_4": None}
    write(tmp_path, range(1, 2), mtp_loss=2.0, **offsets, val_by_source={"a/b.jsonl": source})
    values = read(tmp_path)
    assert values["mtp_loss_3"] == [(1, 3.0)] and "mtp_loss_4" not in values
    assert values["val_by_source/a/b.jsonl/loss"] == [(1, 2.0)]
    assert "val_by_source/a/b.jsonl/bpb" not in values


def test_the_wall_time_can_be_set(tmp_path: Path):
    write(tmp_path, range(5, 6))
    accumulator = EventAccumulator(str(tmp_path / FOLDER))
    accumulator.Reload()
    assert [event.wall_time for event in accumulator.Scalars("loss")] == [1005.0]


def test_resuming_shows_every_step_once(tmp_path: Path):
    write(tmp_path, range(1, 10), grad_norm=1.0)
    write(tmp_path, range(7, 12), resume_step=6, grad_norm=2.0)
    values = read(tmp_path)
    assert values["grad_norm"] == [(step, 1.0 if step <= 6 else 2.0) for step in range(1, 12)]
    assert [step for step, _ in values["loss"]] == list(range(1, 12))


def test_resuming_takes_away_what_is_not_written_again(tmp_path: Path):
    write(tmp_path, range(1, 10))
    write(tmp_path, range(0), resume_step=4)
    assert [step for step, _ in read(tmp_path)["loss"]] == [1, 2, 3, 4]


def test_starting_over_shows_one_history(tmp_path: Path):
    """A run that was killed before its first checkpoint starts again at step 0."""
    write(tmp_path, range(1, 8), grad_norm=1.0)
    write(tmp_path, range(1, 4), grad_norm=2.0)
    assert read(tmp_path)["grad_norm"] == [(step, 2.0) for step in (1, 2, 3)]


def test_a_roll_back_leaves_one_history(tmp_path: Path):
    board = TensorBoard()
    board.open(tmp_path, 0)
    for step in range(1, 10):
        board.write(metrics_of(step=step, loss=1.0))
    board.rewind(4)
    for step in range(5, 8):
        board.write(metrics_of(step=step, loss=2.0))
    board.close()
    losses = read(tmp_path)["loss"]
    assert losses == [(step, 1.0 if step <= 4 else 2.0) for step in range(1, 8)]


def test_a_figure_that_is_not_finite_is_written(tmp_path: Path):
    write(tmp_path, range(1, 2), loss=float("inf"))
    assert read(tmp_path)["loss"] == [(1, float("inf"))]


def test_a_place_that_cannot_be_written_is_an_error_of_exit_code_6(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/tb: Not a directory") as refusal:
        TensorBoard().open(tmp_path / "file", 0)
    assert refusal.value.exit_code == 6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_named_and_stays_the_error_when_the_writer_is_closed(
    tmp_path: Path, monkeypatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    board = TensorBoard()
    board.open(tmp_path, 0)
    # TensorBoard writes in a separate thread, so the error comes with a later step.
    records = board._writer._async_writer._writer
    monkeypatch.setattr(records, "write", full)
    monkeypatch.setattr(records, "flush", full)
    with pytest.raises(StorageError, match="No space left on device") as refusal:
        for step in range(1, 100):
            board.write(metrics_of(step=step), wall_time=0.0)
            time.sleep(0.01)
    assert refusal.value.exit_code == 6
    board.close()
