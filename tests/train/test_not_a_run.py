"""A path that is no run is said to be what it is, and the run that is meant is named."""

import os
from pathlib import Path

import pytest

from moebius.train.not_a_run import not_a_run


def made(folder: Path, *names: str) -> None:
    """Create runs, each a second older than the next."""
    for age, name in enumerate(reversed(names)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.toml").touch()
        os.utime(folder / name, (1e9 - age, 1e9 - age))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_without_its_folder():
    made(Path("runs"), "a", "b")
    assert not_a_run(Path("a")) == "there is no such directory; did you mean runs/a?"
    Path("a").mkdir()
    assert not_a_run(Path("a")).endswith("no config.toml in it; did you mean runs/a?")
    Path("b").touch()
    assert not_a_run(Path("b")) == ("a file, not the directory of a run; did you mean runs/b?")


def test_what_does_not_exist():
    assert not_a_run(Path("gone")) == "there is no such directory"
    assert not_a_run(Path("gone/deeper")) == "there is no such directory"
    made(Path("runs"), "a")
    assert not_a_run(Path("gone")) == "there is no such directory; runs holds the run runs/a"
    assert not_a_run(Path("runs/gone")).endswith("; runs holds the run runs/a")


def test_the_folder_of_the_runs_lists_the_newest():
    made(Path("out"), "a", "b")
    assert not_a_run(Path("out")) == (
        "not a run directory, there is no config.toml in it; out holds the runs out/b, out/a"
    )
    made(Path("many"), *"abcdefg")
    assert not_a_run(Path("many")).endswith("many/g, many/f, many/e, many/d, many/c and 2 more")


@pytest.mark.parametrize(
    "inside", ["checkpoints", "checkpoints/step-00000004", "config.toml", "gone", "tb/a/b"]
)
def test_what_is_inside_of_a_run(inside, here: Path, monkeypatch):
    made(Path("runs"), "a")
    (Path("runs/a") / "checkpoints" / "step-00000004").mkdir(parents=True)
    line = "inside of a run; name the directory of the run itself, "
    assert not_a_run(Path("runs/a") / inside) == f"{line}runs/a"
    monkeypatch.chdir("runs/a")
    assert not_a_run(Path(inside)) == f"{line}{here / 'runs' / 'a'}"


def test_a_run_without_its_configuration():
    Path("a").mkdir()
    (Path("a") / "run.json").touch()
    assert not_a_run(Path("a")) == (
        "its config.toml is missing; restore it from a copy, or its values from run.json"
    )
