"""A run's folder: where it is, what is in it, and that two runs never share one."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from moebius.config import Config, DataConfig, TrainConfig
from moebius.config.train import RUN_NAME
from moebius.data.tokenizer import prepare_tokenizer
from moebius.errors import CheckpointError, ConfigError, StorageError
from moebius.train.ownership import Ownership
from moebius.train.run_directory import STARTING, RunDirectory
from moebius.train.run_record import RunRecord

BYTES = prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])


def config_of(out: Path, name: str = "") -> Config:
    """Return the configuration of a run that may have a name."""
    return Config(train=TrainConfig(out=str(out), name=name))


def create(run: RunDirectory, config: Config) -> Ownership:
    """Create the directory of a run with the tokenizer of bytes."""
    return run.create(RunRecord(config), BYTES, pytest.fail)


def test_planning_creates_nothing(tmp_path: Path):
    run = RunDirectory.plan(config_of(tmp_path / "runs", "mine"), "tiny")
    assert run.root == tmp_path / "runs" / "mine"
    assert not (tmp_path / "runs").exists()


def test_a_run_has_a_configuration_that_reads_back(tmp_path: Path):
    config = config_of(tmp_path / "deep" / "runs", "mine")
    config = replace(config, data=DataConfig(source='grün "中" 😀\\n'))
    run = RunDirectory.plan(config, "tiny")
    folder = create(run, config).folder
    assert folder == run.root
    assert RunDirectory.open(str(run.root)).config() == config
    assert run.tokenizer().to_json() == BYTES.to_json()
    assert sorted(path.name for path in run.root.iterdir()) == [
        "config.toml",
        "run.json",
        "tokenizer.json",
    ]
    assert [path.name for path in run.root.parent.iterdir()] == ["mine"]


def test_a_run_is_there_with_all_its_files_or_not_at_all(tmp_path: Path, monkeypatch):
    config = config_of(tmp_path, "mine")
    run = RunDirectory.plan(config, "tiny")
    leftover = tmp_path / f".mine.0123abcd{STARTING}"  # a process was killed here long ago
    leftover.mkdir()
    (leftover / "config.toml").write_text("half")
    os.utime(leftover, (0, 0))

    def failing(self: Path, target: Path) -> None:
        names = {path.name for path in self.iterdir()}
        assert names == {".lock", "config.toml", "run.json", "tokenizer.json"}
        assert not run.root.exists()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(StorageError, match="No space left"):
            create(run, config)
    assert not list(tmp_path.iterdir())
    create(run, config)
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
        create(RunDirectory(place), config)
    assert kind == "file" or not list(place.iterdir())


def test_a_link_to_nowhere_exists(tmp_path: Path):
    (tmp_path / "mine").symlink_to(tmp_path / "nowhere")
    run = RunDirectory(tmp_path / "mine")
    with pytest.raises(ConfigError, match="exists"):
        create(run, config_of(tmp_path, "mine"))
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_cannot_be_written_is_an_error_of_exit_code_6(tmp_path: Path):
    (tmp_path / "file").touch()
    config = config_of(tmp_path / "file", "mine")
    run = RunDirectory.plan(config, "tiny")
    match = r"file/mine: Not a directory; choose another --train\.out"
    with pytest.raises(StorageError, match=match) as refusal:
        create(run, config)
    assert refusal.value.exit_code == 6


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path):
    for place, match in (
        (tmp_path / "gone", "gone: there is no such directory$"),
        (tmp_path, r"not a run directory, there is no config\.toml in it$"),
    ):
        with pytest.raises(ConfigError, match=match):
            RunDirectory.open(str(place))


def test_unnamed_runs_of_the_same_second_have_names_of_their_own(tmp_path: Path):
    config = config_of(tmp_path)
    planned = RunDirectory.plan(config, "x" * 60 + ".toml")
    owners = [create(planned, config) for _ in range(11)]
    names = [owner.folder.name for owner in owners]
    assert names[0] == planned.root.name and len(set(names)) == 11
    assert all(RUN_NAME.fullmatch(name) for name in names)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert all(RunDirectory(owner.folder).config() == config for owner in owners)


@pytest.mark.parametrize("place", ["file", "file/deep", "dangling", "dangling/deep", "/proc/x"])
def test_a_place_that_cannot_be_written_is_found_before_anything_else(place, tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    run = RunDirectory.plan(config_of(tmp_path / place, "mine"), "tiny")
    with pytest.raises(StorageError, match=r"mine: .*; choose another --train\.out"):
        run.check_writable()


def test_looking_whether_a_place_can_be_written_leaves_nothing_behind(tmp_path: Path):
    RunDirectory.plan(config_of(tmp_path / "deep" / "runs", "mine"), "tiny").check_writable()
    assert not list(tmp_path.iterdir())


def cut(text: str) -> list[str]:
    """Return the text after different kinds of damage."""
    lines = text.splitlines(keepends=True)
    return [
        "",
        "\n",
        "\0" * 300,
        "".join(lines[: len(lines) // 2]),
        "".join(lines[:-1]),
        text.replace("seed = 0\n", ""),
        text.replace("[parallel]", "[train2]"),
        text[: text.index("[observe.cv]")],
        text[: len(text) // 3],
    ]


@pytest.mark.parametrize("kind", range(9))
def test_a_configuration_with_parts_missing_is_no_configuration(kind, tmp_path: Path):
    run = RunDirectory.plan(config_of(tmp_path, "mine"), "tiny")
    create(run, config_of(tmp_path, "mine"))
    run.config_path.write_text(cut(run.config_path.read_text())[kind])
    with pytest.raises(CheckpointError, match=r"config\.toml: .*restore config\.toml") as refusal:
        run.config()
    assert refusal.value.exit_code == 4 and "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 6])
def test_nor_is_it_in_a_run_of_an_earlier_version(kind, tmp_path: Path):
    """Such a run has no run.json, but all sections."""
    run = RunDirectory.plan(config_of(tmp_path, "mine"), "tiny")
    create(run, config_of(tmp_path, "mine"))
    run.record_path.unlink()
    run.config_path.write_text(cut(run.config_path.read_text())[kind])
    with pytest.raises(CheckpointError, match="restore config"):
        run.config()


DAMAGE = [b"", b"\0" * 300, b"[]", b"3", b'{"version": 2}', b'{"version": 1}', b"[" * 9999]


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_record_is_reported_and_does_not_end_the_run(content, tmp_path: Path):
    config = config_of(tmp_path, "mine")
    run = RunDirectory.plan(config, "tiny")
    create(run, config)
    assert (run.record(pytest.fail) or RunRecord(Config())).config == config
    run.record_path.write_bytes(content)
    lines: list[str] = []
    assert run.record(lines.append) is None
    assert len(lines) == 1 and lines[0].startswith(f"{run.record_path}: damaged (")
    assert run.config() == config
