"""Files with settings that no longer exist are still read."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from moebius.config import Config
from moebius.config.fields import settings
from moebius.config.files import override, read_config, to_toml
from moebius.config.flags import parse_flags
from moebius.config.presets import preset
from moebius.config.removed import REMOVED, Removed, explanation, without_removed
from moebius.errors import ConfigError

OLD_STANDARD = Path(__file__).with_name("old_standard.toml")
EXAMPLES = {
    "model.width": Removed("there is only one", "model.dim"),
    "train.epochs": Removed(
        "runs are counted in steps", "train.steps", lambda epochs: 100 * epochs
    ),
    "train.verbose": Removed("everything is logged"),
    "observe.cv.period": Removed("it is called window", "observe.cv.window"),
}


@pytest.fixture
def examples(monkeypatch):
    """Replace the removed settings with examples."""
    for name in list(REMOVED):
        monkeypatch.delitem(REMOVED, name)
    for name, removed in EXAMPLES.items():
        monkeypatch.setitem(REMOVED, name, removed)


def read(text: str, path: Path) -> tuple[Config, list[str]]:
    """Return the configuration that a file with this text gives, and the notes about it."""
    path.write_text(text)
    notes: list[str] = []
    return read_config(str(path), [], notes.append), notes


def test_a_complete_file_of_before_gives_the_same_configuration():
    notes: list[str] = []
    assert read_config(str(OLD_STANDARD), [], notes.append) == preset("standard")
    assert [note.split(" is no longer")[0] for note in notes] == [
        f"{OLD_STANDARD}: {name}" for name in REMOVED
    ]


def test_what_is_written_now_has_no_removed_setting(tmp_path):
    config, notes = read(to_toml(read_config(str(OLD_STANDARD), [], lambda note: None)),
                         tmp_path / "config.toml")  # fmt: skip
    assert config == preset("standard") and not notes


def test_no_setting_is_both_there_and_removed():
    names = settings(Config)
    for name, removed in REMOVED.items():
        assert name not in names and "\n" not in removed.reason
        assert not removed.successor or removed.successor in names


def test_every_setting_of_before_is_there_or_removed():
    old: dict[str, Any] = tomllib.loads(OLD_STANDARD.read_text())
    alarms = {f"observe.{name}": old["observe"].pop(name) for name in settings_of_alarms(old)}
    names = {f"{path}.{key}" for path, table in (old | alarms).items() for key in table}
    assert len(names) > 100
    assert names <= {*settings(Config), *REMOVED}


def settings_of_alarms(old: dict[str, Any]) -> list[str]:
    return [name for name, value in old["observe"].items() if isinstance(value, dict)]


@pytest.mark.parametrize(
    ("value", "end"),
    [("last", "; ignored"), ("lowest_gate", "; 'lowest_gate' is ignored, so training differs")],
)
def test_the_note_says_whether_a_removed_value_changes_training(value, end, tmp_path):
    config, (note,) = read(f'[model]\ncapacity_drop = "{value}"\n', tmp_path / "own.toml")
    assert config == Config() and note.endswith(f"later ones){end}")


def test_a_removed_setting_is_ignored_and_named(examples, tmp_path):
    config, notes = read("[train]\nverbose = true\nsteps = 3\n", tmp_path / "own.toml")
    assert config == override(Config(), {"train": {"steps": 3}})
    assert notes == [
        f"{tmp_path}/own.toml: train.verbose is no longer a setting (everything is logged); "
        "ignored"
    ]


def test_a_replaced_setting_is_converted(examples, tmp_path):
    text = "[train]\nepochs = 7\n[model]\nwidth = 448\n[observe.cv]\nperiod = 5\n"
    config, notes = read(text, tmp_path / "own.toml")
    assert (config.train.steps, config.model.dim, config.observe.cv.window) == (700, 448, 5)
    assert notes == [
        f"{tmp_path}/own.toml: model.width is no longer a setting (there is only one); "
        "read as model.dim=448",
        f"{tmp_path}/own.toml: train.epochs is no longer a setting (runs are counted in steps); "
        "read as train.steps=700",
        f"{tmp_path}/own.toml: observe.cv.period is no longer a setting (it is called window); "
        "read as observe.cv.window=5",
    ]


def test_a_successor_that_the_file_sets_itself_counts(examples, tmp_path):
    config, _ = read("[train]\nepochs = 7\nsteps = 3\n", tmp_path / "own.toml")
    assert config.train.steps == 3


def test_a_replaced_value_is_checked(examples, tmp_path):
    with pytest.raises(ConfigError, match=r"own\.toml: model\.dim='wide': must be an integer"):
        read('[model]\nwidth = "wide"\n', tmp_path / "own.toml")


def test_bases_are_read_in_the_same_way(examples, tmp_path):
    (tmp_path / "base.toml").write_text("[train]\nverbose = true\nepochs = 2\n")
    text = 'base = "base.toml"\n[train]\nverbose = false\n'
    config, notes = read(text, tmp_path / "own.toml")
    assert config.train.steps == 200
    assert [Path(note.split(":")[0]).name for note in notes] == ["base.toml"] * 2 + ["own.toml"]


def test_a_section_of_another_type_is_left_to_the_check_of_the_settings(examples):
    for values in ({"train": 3}, {"observe": {"cv": 3}}, {"observe": []}, {}):
        assert without_removed(values, pytest.fail) == values


def test_the_given_values_stay_as_they_are(examples):
    values = {"train": {"epochs": 7}}
    assert without_removed(values, lambda line: None) == {"train": {"steps": 700}}
    assert values == {"train": {"epochs": 7}}


def test_a_removed_setting_is_an_error_as_a_flag(examples):
    for flag in ("--train.verbose", "--train.verbose=true"):
        with pytest.raises(ConfigError) as caught:
            parse_flags([flag, "true"])
        assert str(caught.value) == (
            "--train.verbose is no longer a setting (everything is logged)"
        )
    with pytest.raises(ConfigError, match=r"counted in steps\); use train\.steps$"):
        parse_flags(["--train.epochs", "3"])


def test_a_removed_setting_is_an_error_in_a_python_call(examples):
    with pytest.raises(ConfigError, match=r"^train\.verbose is no longer a setting \(every"):
        override(Config(), {"train": {"verbose": True}})


def test_what_never_was_a_setting_has_no_explanation():
    assert explanation("model.dmi") == ""


def test_notes_go_to_stderr_by_default(examples, tmp_path, capsys):
    file = tmp_path / "own.toml"
    file.write_text("[train]\nverbose = true\n")
    read_config(str(file), [])
    read_config(str(file), [])
    assert capsys.readouterr().err == (
        f"moebius: {file}: train.verbose is no longer a setting (everything is logged); ignored\n"
    )
