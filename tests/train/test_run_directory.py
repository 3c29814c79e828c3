"""A run's folder: where it is, what is in it, and that two runs never share one."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from moebius.config import Config, DataConfig, TrainConfig
from moebius.config.train import RUN_NAME
from moebius.data.tokenizer import prepare_tokenizer
from moebius.errors import ConfigError, StorageError
from moebius.train.run_directory import RunDirectory

BYTES = prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])


def config_of(out: Path, name: str = "") -> Config:
    """Return the configuration of a run that may have a name."""
    return Config(train=TrainConfig(out=str(out), name=name))


def test_planning_creates_nothing(tmp_path: Path):
    run = RunDirectory.plan(config_of(tmp_path / "runs", "mine"), "tiny")
    assert run.root == tmp_path / "runs" / "mine"
    assert not (tmp_path / "runs").exists()


def test_a_run_has_a_configuration_that_reads_back(tmp_path: Path):
    config = config_of(tmp_path / "deep" / "runs", "mine")
    config = replace(config, data=DataConfig(source='grün "中" 😀\\n'))
    run = RunDirectory.plan(config, "tiny")
    run.create(config, BYTES)
    assert RunDirectory.open(str(run.root)).config() == config
    assert run.tokenizer().to_json() == BYTES.to_json()
    assert sorted(path.name for path in run.root.iterdir()) == ["config.toml", "tokenizer.json"]
    assert [path.name for path in run.root.parent.iterdir()] == ["mine"]


def test_a_run_is_there_with_all_its_files_or_not_at_all(tmp_path: Path, monkeypatch):
    config = config_of(tmp_path, "mine")
    run = RunDirectory.plan(config, "tiny")
    (tmp_path / ".mine.partial").mkdir()  # a process was killed here
    (tmp_path / ".mine.partial" / "config.toml").write_text("half")

    def failing(self: Path, target: Path) -> None:
        assert not run.root.exists() and len(list(self.iterdir())) == 2
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(StorageError, match="No space left"):
            run.create(config, BYTES)
    assert not list(tmp_path.iterdir())
    run.create(config, BYTES)
    assert run.config() == config


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
    name = RunDirectory.plan(config_of(tmp_path), source).root.name
    assert re.fullmatch(re.escape(stem) + r"-\d{8}-\d{6}", name)
    assert RUN_NAME.fullmatch(name)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_that_exists_is_written_into(kind, tmp_path: Path):
    place = tmp_path / "mine"
    place.mkdir() if kind == "folder" else place.touch()
    config = config_of(tmp_path, "mine")
    match = r"train.name='mine': .*mine exists; choose another --train.name, or `moebius resume"
    with pytest.raises(ConfigError, match=match):
        RunDirectory.plan(config, "tiny")
    # It may also appear between planning a run's directory and creating it.
    with pytest.raises(ConfigError, match="exists"):
        RunDirectory(place).create(config, BYTES)
    assert kind == "file" or not list(place.iterdir())


def test_a_link_to_nowhere_exists(tmp_path: Path):
    (tmp_path / "mine").symlink_to(tmp_path / "nowhere")
    run = RunDirectory(tmp_path / "mine")
    with pytest.raises(ConfigError, match="exists"):
        run.create(config_of(tmp_path, "mine"), BYTES)
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_cannot_be_written_is_an_error_of_exit_code_6(tmp_path: Path):
    (tmp_path / "file").touch()
    config = config_of(tmp_path / "file", "mine")
    run = RunDirectory.plan(config, "tiny")
    match = r"file/mine: Not a directory; choose another --train\.out"
    with pytest.raises(StorageError, match=match) as refusal:
        run.create(config, BYTES)
    assert refusal.value.exit_code == 6


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path):
    for place in (tmp_path / "gone", tmp_path):
        match = r"not a run directory, there is no config\.toml in it"
        with pytest.raises(ConfigError, match=match):
            RunDirectory.open(str(place))
