"""The checkpoints of a run: which one is the newest intact one, and which ones stay."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moebius.errors import CheckpointError, ForeignCheckpointError
from moebius.train import checkpoint, checkpoint_store
from tests.train.checkpoints import names_in, spoiled
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


def test_no_later_step_than_the_one_asked_for_is_loaded(tmp_path):
    save(tmp_path, 0, 1, 2, 3)
    damage(tmp_path, 3)
    lines: list[str] = []
    newest = checkpoint_store.load_newest(tmp_path, checkpoint.verify, lines.append, up_to=2)
    assert newest is not None and newest.name == "step-00000002" and lines == []
    assert checkpoint_store.load_newest(tmp_path, checkpoint.verify, silent, up_to=-1) is None


def test_steps_are_compared_as_numbers(tmp_path):
    save(tmp_path, 99_999_999, 100_000_000)
    assert checkpoint_store.latest(tmp_path, silent).name == "step-100000000"
    assert saved_steps(tmp_path) == [100_000_000, 99_999_999]


def test_a_folder_without_checkpoints_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        assert checkpoint_store.complete(folder) == []
        with pytest.raises(CheckpointError, match="no intact checkpoint"):
            checkpoint_store.latest(folder, silent)


def unexpected(folder: Path) -> None:
    """Fail, because nothing should be loaded."""
    pytest.fail(f"{folder} was loaded")


def weights_into(loaded: dict[str, Any]) -> Callable[[Path], None]:
    """Return a function that loads a checkpoint's weights into a dictionary."""
    return lambda folder: loaded.update(checkpoint.load(folder)[0]["model"])


def unreadable(folder: Path) -> None:
    """Replace the folder with what cannot be read even by the system's administrator."""
    shutil.rmtree(folder)
    folder.symlink_to(folder)  # too many levels of links


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit of the weights flipped": lambda folder: (folder / "model.safetensors").write_bytes(
        spoiled((folder / "model.safetensors").read_bytes(), "flip")
    ),
    "zeros in the weights": lambda folder: (folder / "model.safetensors").write_bytes(
        spoiled((folder / "model.safetensors").read_bytes(), "zeros")
    ),
    "zeros in the state": lambda folder: (folder / "state.json").write_bytes(
        bytes((folder / "state.json").stat().st_size)
    ),
    "zeros in the manifest": lambda folder: (folder / "manifest.json").write_bytes(bytes(300)),
    "the manifest of an older format": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"version": 3', '"version": 2')
    ),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a folder instead of a file": lambda folder: (
        (folder / "state.json").unlink(),
        (folder / "state.json").mkdir(),
    ),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file instead of the folder": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "a link to nowhere": lambda folder: (shutil.rmtree(folder), folder.symlink_to("nowhere")),
    "a link to itself": unreadable,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_whatever_cannot_be_loaded_is_passed_over_and_set_aside(tmp_path, damage):
    save(tmp_path, 3, 6, 9, 12)
    damage(tmp_path / "step-00000009")
    damage(tmp_path / "step-00000012")
    loaded: dict[str, Any] = {}
    lines: list[str] = []
    newest = checkpoint_store.load_newest(tmp_path, weights_into(loaded), lines.append)
    assert newest == tmp_path / "step-00000006" and loaded["weight"][0] == 6
    assert saved_steps(tmp_path) == [12, 9, 6, 3]  # only the run's own process may rename
    for step, line in zip((12, 9), lines, strict=True):
        assert line.startswith("passed over: ") and f"step-{step:08d}" in line and "\n" not in line

    lines.clear()
    load = weights_into(loaded)
    assert checkpoint_store.load_newest(tmp_path, load, lines.append, set_aside=True) == newest
    assert saved_steps(tmp_path) == [6, 3]
    assert [line.rpartition(" ")[2] for line in lines[2:]] == [
        "step-00000012.damaged",
        "step-00000009.damaged",
    ]
    lines.clear()
    assert checkpoint_store.load_newest(tmp_path, load, lines.append, set_aside=True) == newest
    assert lines == []


def test_a_run_without_checkpoints_has_none_to_load(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        assert checkpoint_store.load_newest(folder, unexpected, pytest.fail) is None
    save(tmp_path, 5)
    assert checkpoint_store.load_newest(tmp_path, unexpected, pytest.fail, up_to=4) is None


def test_no_run_begins_again_because_none_of_its_checkpoints_can_be_loaded(tmp_path):
    save(tmp_path, 3, 6)
    damage(tmp_path, 3)
    damage(tmp_path, 6)
    match = "no intact checkpoint, step-00000006, step-00000003 cannot be loaded: .*step-00000006/"
    for _ in range(2):  # none is set aside, or the second time there would be none
        with pytest.raises(CheckpointError, match=match) as refusal:
            checkpoint_store.load_newest(tmp_path, checkpoint.verify, silent, set_aside=True)
        assert "\n" not in str(refusal.value)
    for step in (3, 6):
        checkpoint.set_aside(tmp_path / f"step-{step:08d}")
    match = r"step-00000003\.damaged, step-00000006\.damaged could not be loaded; copy one here"
    with pytest.raises(CheckpointError, match=match):
        checkpoint_store.load_newest(tmp_path, checkpoint.verify, silent)


def test_a_checkpoint_of_another_run_is_an_error_and_not_passed_over(tmp_path):
    save(tmp_path, 3, 6, 9)
    damage(tmp_path, 9)

    def load(folder: Path) -> None:
        checkpoint.verify(folder)
        raise ForeignCheckpointError(f"{folder}: the checkpoint of another model")

    with pytest.raises(ForeignCheckpointError, match="step-00000006: the checkpoint of another"):
        checkpoint_store.load_newest(tmp_path, load, silent, set_aside=True)
    assert saved_steps(tmp_path) == [9, 6, 3]


def test_a_checkpoint_of_a_later_format_is_an_error_and_not_passed_over(tmp_path):
    save(tmp_path, 3, 6)
    manifest = tmp_path / "step-00000006" / "manifest.json"
    manifest.write_text('{"version": 4, "parts": []}')
    with pytest.raises(ForeignCheckpointError, match="checkpoint format 4"):
        checkpoint_store.load_newest(tmp_path, checkpoint.verify, silent)


def test_an_error_that_is_not_the_checkpoints_fault_is_raised(tmp_path):
    save(tmp_path, 3, 6)

    def load(folder: Path) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        checkpoint_store.load_newest(tmp_path, load, pytest.fail)


def test_a_folder_that_cannot_be_renamed_is_no_error(tmp_path, monkeypatch):
    save(tmp_path, 3, 6)
    damage(tmp_path, 6)

    def denied(path: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", denied)
    lines: list[str] = []
    newest = checkpoint_store.load_newest(
        tmp_path, checkpoint.verify, lines.append, set_aside=True
    )
    assert newest == tmp_path / "step-00000003"
    assert lines[1].endswith("step-00000006: could not be set aside: Permission denied")


def test_checkpoints_on_a_disk_that_is_not_there_are_not_none(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "not mounted")
    with pytest.raises(CheckpointError, match="not mounted, which is not there"):
        checkpoint_store.load_newest(tmp_path / "checkpoints", unexpected, silent)
    assert "not there" in checkpoint_store.last_good(tmp_path / "checkpoints")
    (tmp_path / "file").touch()
    for function in (checkpoint_store.complete, checkpoint_store.tidy):
        with pytest.raises(OSError, match="file"):
            function(tmp_path / "file")
    assert "Not a directory" in checkpoint_store.last_good(tmp_path / "file")


def test_the_last_good_checkpoint_is_named_without_reading_it(tmp_path):
    last_good = checkpoint_store.last_good
    assert last_good(tmp_path) == last_good(tmp_path / "missing") == "there is no checkpoint yet"
    (tmp_path / ".step-00000001.partial").mkdir()
    assert last_good(tmp_path) == "there is no checkpoint yet"
    save(tmp_path, 3, 6, 9)
    assert last_good(tmp_path) == "the last good checkpoint is step 9"
    damage(tmp_path, 9)
    (tmp_path / "step-00000012").touch()
    assert last_good(tmp_path) == "the last good checkpoint is step 6"
    for step in (3, 6):
        damage(tmp_path, step)
    assert last_good(tmp_path) == "there is no good checkpoint"
    for step in (3, 6, 9, 12):
        checkpoint.set_aside(tmp_path / f"step-{step:08d}")
    assert last_good(tmp_path) == "there is no good checkpoint"


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


def test_tidying_trusts_a_replacement_only_if_it_is_intact(tmp_path):
    """A process was killed after it put the new one in place and before it had read it back."""
    save(tmp_path, 1, 2, 3)
    for step in (1, 2):
        folder = tmp_path / f"step-{step:08d}"
        shutil.copytree(folder, tmp_path / f".step-{step:08d}.replaced")
    damage(tmp_path, 2)
    checkpoint_store.tidy(tmp_path)
    assert names_in(tmp_path) == [
        "step-00000001",
        "step-00000002",
        "step-00000002.damaged",
        "step-00000003",
    ]
    checkpoint.load(tmp_path / "step-00000002")


def test_tidying_clears_files_and_links_away_too(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000003.partial").touch()
    (tmp_path / ".step-00000004.deleted").symlink_to(tmp_path / "step-00000001")
    checkpoint_store.tidy(tmp_path)
    assert names_in(tmp_path) == ["step-00000001"]
    checkpoint.load(tmp_path / "step-00000001")


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
    checkpoint_store.prune(tmp_path, keep_last, keep_every, tmp_path / "step-00000006")
    assert saved_steps(tmp_path) == kept
    assert len(names_in(tmp_path)) == len(kept)


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_what_was_just_written_stays_even_if_others_are_of_later_steps(tmp_path, keep_last):
    """It was read back when it was written; nobody knows about the others."""
    save(tmp_path, 3, 6, 7, 8, 9, 12)
    checkpoint_store.prune(tmp_path, keep_last, keep_every=0, written=tmp_path / "step-00000006")
    assert set(saved_steps(tmp_path)) == {6, *(12, 9, 8)[:keep_last]}


def test_folders_that_are_visibly_damaged_do_not_count_as_kept(tmp_path):
    save(tmp_path, 3, 6, 9, 12, 15, 18)
    damage(tmp_path, 15)
    (tmp_path / "step-00000012" / "manifest.json").unlink()
    (tmp_path / "step-00000016").touch()
    (tmp_path / "step-00000017").mkdir()
    checkpoint.set_aside(tmp_path / "step-00000009")
    checkpoint_store.prune(tmp_path, 2, keep_every=0, written=tmp_path / "step-00000018")
    assert saved_steps(tmp_path) == [18, 17, 16, 15, 12, 6]
    assert "step-00000009.damaged" in names_in(tmp_path)


def test_a_link_to_a_checkpoint_is_pruned_and_what_it_leads_to_is_not(tmp_path):
    save(tmp_path / "elsewhere", 1)
    save(tmp_path, 2)
    (tmp_path / "step-00000001").symlink_to(tmp_path / "elsewhere" / "step-00000001")
    checkpoint_store.prune(tmp_path, 1, keep_every=0, written=tmp_path / "step-00000002")
    assert names_in(tmp_path) == ["elsewhere", "step-00000002"]
    checkpoint.load(tmp_path / "elsewhere" / "step-00000001")


def save_until(call: int, folder: Path) -> bool:
    """Save steps 3 and 4, and 4 again, in a process that dies at one of its calls.

    The calls are those that sync, rename or delete. Returns whether the process came to its end.
    """
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    number = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **settings: Any) -> Any:
            nonlocal number
            number += 1
            if number == call:
                os._exit(9)
            return function(*arguments, **settings)

        return counted

    os.fsync, os.rmdir, os.unlink = deadly(os.fsync), deadly(os.rmdir), deadly(os.unlink)
    Path.rename = deadly(Path.rename)
    try:
        for step in (3, 4, 4):
            save(folder, step)
            checkpoint_store.prune(folder, 2, 0, written=folder / f"step-{step:08d}")
    finally:
        os._exit(0)


def test_a_process_that_dies_at_any_call_leaves_the_newest_but_one_at_least(tmp_path):
    folder, call, is_done = tmp_path / "checkpoints", 0, False
    while not is_done:
        call += 1
        shutil.rmtree(folder, ignore_errors=True)
        save(folder, 1, 2)
        is_done = save_until(call, folder)
        checkpoint_store.tidy(folder)
        assert checkpoint_store.step_of(checkpoint_store.latest(folder, pytest.fail)) >= 2
        assert all(re.fullmatch(r"step-\d+", name) for name in names_in(folder))
    assert call > 30 and saved_steps(folder) == [4, 3]
