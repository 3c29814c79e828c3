"""The checkpoints of a run: which one is the newest intact one, and which ones stay."""

import shutil
from pathlib import Path

import pytest
import torch

from moebius.errors import CheckpointError
from moebius.train import checkpoint, checkpoint_store
from tests.train.checkpoints import names_in
from tests.train.runs import silent


def save(folder: Path, *steps: int) -> None:
    """Write small checkpoints of these steps."""
    for step in steps:
        tensors = {"model": {"weight": torch.full((3,), float(step))}}
        checkpoint.save(folder / f"step-{step:08d}", tensors, {"step": step})


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that can be seen, newest first."""
    return [checkpoint_store.step_of(path) for path in checkpoint_store.complete(folder)]


def damage(folder: Path, step: int) -> None:
    (folder / f"step-{step:08d}" / "model.safetensors").write_bytes(b"")


def test_latest_passes_over_broken_checkpoints_and_says_so(tmp_path):
    save(tmp_path, 1, 5, 20, 100)
    (tmp_path / "step-00000100" / "manifest.json").unlink()
    damage(tmp_path, 20)
    (tmp_path / ".step-00000200.partial").mkdir()
    (tmp_path / "step-00000300").write_text("a file")
    (tmp_path / "notes").mkdir()
    lines: list[str] = []
    assert checkpoint_store.latest(tmp_path, lines.append) == tmp_path / "step-00000005"
    assert len(lines) == 3 and not any("\n" in line for line in lines)
    for step, line in zip((300, 100, 20), lines, strict=True):
        assert line.startswith("passed over: ") and f"step-{step:08d}" in line


def test_latest_looks_at_no_later_step_than_it_is_asked_for(tmp_path):
    save(tmp_path, 0, 1, 2, 3)
    damage(tmp_path, 3)
    lines: list[str] = []
    newest = checkpoint_store.latest(tmp_path, lines.append, up_to=2)
    assert newest.name == "step-00000002" and lines == []
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        checkpoint_store.latest(tmp_path, silent, up_to=-1)


def test_steps_are_compared_as_numbers(tmp_path):
    save(tmp_path, 99_999_999, 100_000_000)
    assert checkpoint_store.latest(tmp_path, silent).name == "step-100000000"
    assert saved_steps(tmp_path) == [100_000_000, 99_999_999]


def test_a_folder_without_checkpoints_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        assert checkpoint_store.complete(folder) == []
        with pytest.raises(CheckpointError, match="no intact checkpoint"):
            checkpoint_store.latest(folder, silent)


def test_later_checkpoints_are_discarded(tmp_path):
    save(tmp_path, 0, 1, 2, 3)
    checkpoint_store.discard_after(tmp_path, 1)
    assert names_in(tmp_path) == ["step-00000000", "step-00000001"]


def test_tidying_brings_back_what_was_replaced_and_clears_the_rest_away(tmp_path):
    save(tmp_path, 0, 1, 2)
    shutil.copytree(tmp_path / "step-00000000", tmp_path / ".step-00000005.partial")
    shutil.copytree(tmp_path / "step-00000000", tmp_path / ".step-00000000.deleted")
    # A process was killed between moving this checkpoint aside and putting the new one in place.
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.replaced")
    shutil.copytree(tmp_path / "step-00000002", tmp_path / ".step-00000002.replaced")
    checkpoint_store.tidy(tmp_path)
    assert names_in(tmp_path) == ["step-00000000", "step-00000001", "step-00000002"]
    checkpoint.load(tmp_path / "step-00000001")
    checkpoint_store.tidy(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [
        (0, 0, [6, 5, 4, 3, 2, 1, 0]),
        (1, 0, [6]),
        (2, 0, [6, 5]),
        (2, 3, [6, 5, 3, 0]),
        (10, 0, [6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_pruning_keeps_the_newest_and_the_multiples(tmp_path, keep_last, keep_every, kept):
    save(tmp_path, *range(7))
    checkpoint_store.prune(tmp_path, keep_last, keep_every)
    assert saved_steps(tmp_path) == kept
    assert len(names_in(tmp_path)) == len(kept)


def test_nothing_is_pruned_while_the_newest_is_damaged(tmp_path):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path, 3)
    with pytest.raises(CheckpointError, match="step-00000003"):
        checkpoint_store.prune(tmp_path, keep_last=1, keep_every=0)
    assert saved_steps(tmp_path) == [3, 2, 1]
