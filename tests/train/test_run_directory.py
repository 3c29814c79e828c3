"""A run's folder: where it is, and that it is never written into twice."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from moebius.config import RUN_NAME, Config, DataConfig, TrainConfig
from moebius.data.tokenizer import prepare_tokenizer
from moebius.errors import ConfigError, StorageError
from moebius.train.run_directory import RunDirectory

BYTES = prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])


def config(out: Path, name: str = "") -> Config:
    return Config(train=TrainConfig(out=str(out), name=name))


def test_planning_makes_nothing(tmp_path: Path):
    run = RunDirectory.plan(config(tmp_path / "runs", "mine"), "tiny")
    assert run.root == tmp_path / "runs" / "mine"
    assert not (tmp_path / "runs").exists()


def test_a_run_has_a_configuration_that_reads_back(tmp_path: Path):
    settings = config(tmp_path / "deep" / "runs", "mine")
    settings = replace(settings, data=DataConfig(source='grün "中" 😀\\n'))
    run = RunDirectory.plan(settings, "tiny")
    run.create(settings, BYTES)
    assert RunDirectory.open(str(run.root)).config() == settings
    assert run.tokenizer().to_json() == BYTES.to_json()
    assert sorted(path.name for path in run.root.iterdir()) == ["config.toml", "tokenizer.json"]
    assert [path.name for path in run.root.parent.iterdir()] == ["mine"]


def test_a_run_is_there_with_all_its_files_or_not_at_all(tmp_path: Path, monkeypatch):
    settings = config(tmp_path, "mine")
    run = RunDirectory.plan(settings, "tiny")
    (tmp_path / ".mine.partial").mkdir()  # of a process that was killed
    (tmp_path / ".mine.partial" / "config.toml").write_text("half")

    def fails(self: Path, target: Path) -> None:
        assert not run.root.exists() and len(list(self.iterdir())) == 2
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        with pytest.raises(StorageError, match="No space left"):
            run.create(settings, BYTES)
    assert not list(tmp_path.iterdir())
    run.create(settings, BYTES)
    assert run.config() == settings


@pytest.mark.parametrize(
    ("source", "stem"),
    [
        ("tiny", "tiny"),
        ("runs/x/config.toml", "config"),
        ("a b/my cönfig (2).toml", "my-c-nfig--2-"),
        ("v1.5.toml", "v1.5"),
        ("x" * 200 + ".toml", "x" * 48),
    ],
)
def test_a_run_without_a_name_gets_one_that_a_run_may_have(source, stem, tmp_path: Path):
    name = RunDirectory.plan(config(tmp_path), source).root.name
    assert re.fullmatch(re.escape(stem) + r"-\d{8}-\d{6}", name)
    assert RUN_NAME.fullmatch(name)


@pytest.mark.parametrize("there", ["folder", "file"])
def test_what_exists_is_not_written_into(there, tmp_path: Path):
    place = tmp_path / "mine"
    place.mkdir() if there == "folder" else place.touch()
    settings = config(tmp_path, "mine")
    with pytest.raises(ConfigError, match=r"train.name='mine': .*mine exists; choose another --train.name, or `moebius resume"):
        RunDirectory.plan(settings, "tiny")
    with pytest.raises(ConfigError, match="exists"):  # it may come to be between planning and making
        RunDirectory(place).create(settings, BYTES)
    assert there == "file" or not list(place.iterdir())


def test_a_link_to_nowhere_is_something_that_exists(tmp_path: Path):
    (tmp_path / "mine").symlink_to(tmp_path / "nowhere")
    run = RunDirectory(tmp_path / "mine")
    with pytest.raises(ConfigError, match="exists"):
        run.create(config(tmp_path, "mine"), BYTES)
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_cannot_be_written_is_an_error_of_exit_code_6(tmp_path: Path):
    (tmp_path / "file").touch()
    settings = config(tmp_path / "file", "mine")
    run = RunDirectory.plan(settings, "tiny")
    with pytest.raises(StorageError, match=r"file/mine: Not a directory; choose another --train\.out") as refused:
        run.create(settings, BYTES)
    assert refused.value.exit_code == 6


def test_opening_wants_a_configuration(tmp_path: Path):
    for place in (tmp_path / "gone", tmp_path):
        with pytest.raises(ConfigError, match=r"not a run directory, there is no config\.toml in it"):
            RunDirectory.open(str(place))
