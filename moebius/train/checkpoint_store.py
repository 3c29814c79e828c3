"""The checkpoints of a run: finding the newest intact one, and deciding which ones stay."""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from moebius.errors import CheckpointError
from moebius.train.checkpoint import REPLACED, verify

DELETED = ".deleted"  # suffix of a folder that is being deleted


def latest(checkpoints: Path, report: Callable[[str], None], up_to: float = math.inf) -> Path:
    """Return the newest complete and intact checkpoint, of step `up_to` at most.

    `report` gets a line for each checkpoint that is skipped. Raises CheckpointError if there is no
    intact one.
    """
    for folder in complete(checkpoints):
        if step_of(folder) > up_to:
            continue
        try:
            verify(folder)
            return folder
        except CheckpointError as error:
            report(f"passed over: {error}")
    raise CheckpointError(
        f"{checkpoints}: no intact checkpoint; start the run anew, or copy one here"
    )


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def complete(checkpoints: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first, without verifying them.

    Those that are still being written have different names and are left out.
    """
    paths = checkpoints.iterdir() if checkpoints.is_dir() else ()
    matches = {path: re.fullmatch(r"step-(\d+)", path.name) for path in paths}
    steps = {path: int(match[1]) for path, match in matches.items() if match}
    return sorted(steps, key=lambda path: (steps[path], path.name), reverse=True)


def discard_after(checkpoints: Path, step: int) -> None:
    """Delete the checkpoints of later steps, which a run that was rolled back must not resume."""
    for folder in complete(checkpoints):
        if step_of(folder) > step:
            _delete(folder)


def tidy(checkpoints: Path) -> None:
    """Clean up a folder of checkpoints that a killed process left behind.

    A checkpoint that was moved aside is put back unless its replacement is in place. Checkpoints
    that were only partly written or partly deleted are removed.
    """
    for path in checkpoints.glob(".step-*") if checkpoints.is_dir() else ():
        place = checkpoints / path.stem.removeprefix(".")
        if path.suffix == REPLACED and not place.exists():
            path.rename(place)
        else:
            shutil.rmtree(path, ignore_errors=True)


def prune(checkpoints: Path, keep_last: int, keep_every: int) -> None:
    """Delete all but the newest checkpoints and those that are kept permanently.

    The `keep_last` newest checkpoints are kept; 0 keeps all. Checkpoints of steps that are
    multiples of `keep_every` are kept permanently; 0 keeps none this way. Nothing is deleted
    unless the newest checkpoint has been verified, so that the last good one always stays.
    """
    newest_first = complete(checkpoints)
    if not keep_last or len(newest_first) <= keep_last:
        return
    verify(newest_first[0])
    for folder in newest_first[keep_last:]:
        if not keep_every or step_of(folder) % keep_every:
            _delete(folder)


def _delete(folder: Path) -> None:
    """Rename and delete a checkpoint, so that no partial folder has a checkpoint's name."""
    hidden = folder.rename(folder.with_name(f".{folder.name}{DELETED}"))
    shutil.rmtree(hidden, ignore_errors=True)
