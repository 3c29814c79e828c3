"""The checkpoints of a run: finding the newest that loads, and deciding which ones stay."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from moebius.errors import CheckpointError, ForeignCheckpointError
from moebius.train import checkpoint
from moebius.train.checkpoint import DAMAGED, REPLACED, remove

DELETED = ".deleted"  # suffix of a folder that is being deleted
_NAME = re.compile(r"step-(\d+)")


def folder_of(checkpoints: Path, step: int) -> Path:
    """Return the folder that the checkpoint of a step has; `step_of` is the inverse."""
    return checkpoints / f"step-{step:08d}"


def load_newest(
    checkpoints: Path,
    load: Callable[[Path], object],
    report: Callable[[str], None],
    up_to: float = math.inf,
    set_aside: bool = False,
) -> Path | None:
    """Load the newest checkpoint, of step `up_to` at most, that `load` does not refuse.

    `load` raises CheckpointError for a checkpoint that cannot be loaded, and must then leave no
    part of it behind. Such a checkpoint is passed over, and `report` gets a line about it. With
    `set_aside`, which only the process that owns the run may ask for, it is also renamed once an
    older one has been loaded, so that it is not tried again. Returns the checkpoint that was
    loaded, or None if the run has none. Raises CheckpointError if it has some and none can be
    loaded, and ForeignCheckpointError for one of another model or text.
    """
    passed_over: list[Path] = []
    last_error = ""
    for folder in complete(checkpoints):
        if step_of(folder) > up_to:
            continue
        try:
            load(folder)
        except ForeignCheckpointError:
            raise
        except CheckpointError as error:
            last_error = last_error or str(error)
            report(f"passed over: {' '.join(str(error).split())}")
            passed_over.append(folder)
        else:
            if set_aside:
                _set_aside(passed_over, report)
            return folder
    if passed_over:
        names = ", ".join(folder.name for folder in passed_over)
        raise CheckpointError(
            f"{checkpoints}: no intact checkpoint, {names} cannot be loaded: {last_error}"
        )
    if damaged := sorted(path.name for path in _paths(checkpoints) if DAMAGED in path.name):
        raise CheckpointError(
            f"{checkpoints}: no intact checkpoint, {', '.join(damaged)} could not be loaded; "
            "copy one here, or delete them to begin again at step 0"
        )
    return None


def latest(
    checkpoints: Path,
    report: Callable[[str], None],
    load: Callable[[Path], object] = checkpoint.verify,
) -> Path:
    """Return the newest intact checkpoint. By default it is read, but not loaded.

    `load` is that of `load_newest`. `report` gets a line for each checkpoint that is passed over.
    Raises CheckpointError if there is no intact one.
    """
    folder = load_newest(checkpoints, load, report)
    if folder is None:
        raise CheckpointError(
            f"{checkpoints}: no intact checkpoint; start the run anew, or copy one here"
        )
    return folder


def last_good(checkpoints: Path) -> str:
    """Return, in words, which checkpoint a run can continue from. Never raises an error.

    A checkpoint was read back when it was written. Here only its files' sizes are looked at,
    because a process that is about to end has no time to read it again.
    """
    try:
        if not checkpoints.parent.is_dir():
            return f"{checkpoints.parent} is not there any more"
        folders = complete(checkpoints)
        is_any = bool(folders) or any(DAMAGED in path.name for path in _paths(checkpoints))
    except (OSError, CheckpointError) as error:
        return f"the checkpoints cannot be listed: {error}"
    for folder in folders:
        if checkpoint.seems_whole(folder):
            return f"the last good checkpoint is step {step_of(folder)}"
    return "there is no good checkpoint" if is_any else "there is no checkpoint yet"


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def complete(checkpoints: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first, without verifying them.

    Those that are still being written and those that were set aside have different names and are
    left out. Raises OSError if the folder is there and cannot be listed.
    """
    matches = {path: _NAME.fullmatch(path.name) for path in _paths(checkpoints)}
    steps = {path: int(match[1]) for path, match in matches.items() if match}
    return sorted(steps, key=lambda path: (steps[path], path.name), reverse=True)


def discard_after(checkpoints: Path, step: int) -> None:
    """Delete the checkpoints of later steps, which a run that was rolled back must not resume."""
    for folder in complete(checkpoints):
        if step_of(folder) > step:
            _delete(folder)


def tidy(checkpoints: Path) -> None:
    """Clean up a folder of checkpoints that a killed process left behind.

    A checkpoint that was moved aside is put back unless its replacement is in place and intact; a
    damaged replacement is set aside. Checkpoints that were only partly written or partly deleted
    are removed.
    """
    for path in [path for path in _paths(checkpoints) if path.name.startswith(".step-")]:
        place = checkpoints / path.stem.removeprefix(".")
        if path.suffix == REPLACED and not _is_intact(place):
            if os.path.lexists(place):
                checkpoint.set_aside(place)
            path.rename(place)
        else:
            remove(path)


def prune(checkpoints: Path, keep_last: int, keep_every: int, written: Path) -> None:
    """Delete all but the newest checkpoints and those that are kept permanently.

    The `keep_last` newest checkpoints are kept; 0 keeps all. Checkpoints of steps that are
    multiples of `keep_every` are kept permanently; 0 keeps none this way. `written`, which
    `checkpoint.write` has just read back, is kept, so that a good one always stays. Whatever is
    visibly no whole checkpoint neither counts nor is deleted.
    """
    newest_first = complete(checkpoints)
    if not keep_last or len(newest_first) <= keep_last:
        return
    whole = [folder for folder in newest_first if checkpoint.seems_whole(folder)]
    for folder in whole[keep_last:]:
        if folder != written and (not keep_every or step_of(folder) % keep_every):
            _delete(folder)


def _paths(checkpoints: Path) -> list[Path]:
    """Return everything in the folder of checkpoints; nothing if there is no folder yet.

    A folder that is there and cannot be read is an error, because a run would begin again at step
    0 if it had no checkpoints. So is a link to a disk that is not mounted.
    """
    try:
        return sorted(checkpoints.iterdir())
    except FileNotFoundError:
        if checkpoints.is_symlink():
            raise CheckpointError(
                f"{checkpoints}: a link to {checkpoints.readlink()}, which is not there"
            ) from None
        return []


def _set_aside(folders: list[Path], report: Callable[[str], None]) -> None:
    for folder in folders:
        try:
            report(f"{folder}: set aside as {checkpoint.set_aside(folder).name}")
        except OSError as error:
            report(f"{folder}: could not be set aside: {error.strerror or error}")


def _is_intact(folder: Path) -> bool:
    try:
        checkpoint.verify(folder)
    except CheckpointError:
        return False
    return True


def _delete(folder: Path) -> None:
    """Rename and delete a checkpoint, so that no partial folder has a checkpoint's name."""
    remove(folder.rename(folder.with_name(f".{folder.name}{DELETED}")))
