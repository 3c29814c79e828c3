"""Say what a path is that was given as the directory of a run and is not one."""

import os
from pathlib import Path

from moebius.config import TrainConfig

MOST_NAMES = 5  # of runs that are listed
DEEPEST = 4  # folders between a run's directory and a path inside it


def not_a_run(path: Path) -> str:
    """Return, in words, what is at the path instead of a run, and which run may be meant."""
    if run := _run_around(path):
        return f"inside of a run; name the directory of the run itself, {run}"
    out = Path(TrainConfig().out) / path
    meant = f"; did you mean {out}?" if not path.is_absolute() and is_run(out) else ""
    if not os.path.lexists(path):
        return f"there is no such directory{meant or _runs_beside(path)}"
    if not path.is_dir():
        return f"a file, not the directory of a run{meant}"
    if (path / "run.json").exists():
        return "its config.toml is missing; restore it from a copy, or its values from run.json"
    if (path / "config.json").is_file():
        return "an exported or published model, not a run; `moebius import` makes a run of it"
    listed = _listed(path)
    return f"not a run directory, there is no config.toml in it{meant or listed}"


def is_run(path: Path) -> bool:
    """Return whether the path is the directory of a run."""
    return (path / "config.toml").is_file()


def _run_around(path: Path) -> Path | None:
    """Return the run's directory that contains a path, which need not exist."""
    as_written = [parent for parent in path.parents if parent != Path()]
    for parent in (*as_written[:DEEPEST], *path.absolute().parents[:DEEPEST]):
        if is_run(parent):
            return parent
    return None


def _runs_beside(path: Path) -> str:
    """Return the runs in the folder that the path would be in, in words."""
    return _listed(path.parent) if path.parent != Path() else _listed(Path(TrainConfig().out))


def _listed(folder: Path) -> str:
    """Return the newest runs in a folder, in words; "" if it holds none."""
    try:
        runs = sorted(
            (inner for inner in folder.iterdir() if is_run(inner)),
            key=lambda run: run.stat().st_mtime,
            reverse=True,
        )
    except OSError:
        return ""
    names = ", ".join(map(str, runs[:MOST_NAMES]))
    more = f" and {len(runs) - MOST_NAMES} more" if len(runs) > MOST_NAMES else ""
    return f"; {folder} holds the run{'s' if len(runs) > 1 else ''} {names}{more}" if runs else ""
