"""The help shows every setting with its type, bounds, meaning and the value of a configuration."""

import re

import pytest

from moebius.config import Config
from moebius.config.fields import bounds, settings
from moebius.config.files import override, read_config
from moebius.config.flags import parse_text
from moebius.config.help import field_docs, settings_help
from moebius.config.observe import ObserveConfig, Rule
from moebius.config.presets import PRESETS, preset

PLAIN = {
    name: hint
    for name, hint in settings(Config).items()
    if name.count(".") == 1 and name != "train.phases"  # tests/config/test_phases.py has its help
}
ALARMS = list(ObserveConfig().rules())


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch) -> None:
    """Give every heading a single line."""
    monkeypatch.setenv("COLUMNS", "100")


def line(name: str, text: str) -> str:
    """Return the only line that begins with the flag of a setting."""
    (found,) = re.findall(rf"^  --{re.escape(name)}(?![\w.]).*$", text, re.MULTILINE)
    return found


@pytest.mark.parametrize("name", PLAIN)
def test_every_setting_has_type_bounds_value_and_meaning(name):
    text = settings_help(Config())
    heading = line(name, text)
    assert all(bound.requirement in heading for bound in bounds(PLAIN[name]))
    section, key = name.split(".")
    value = getattr(getattr(Config(), section), key)
    shown = heading.rpartition(": ")[2].strip("'")  # the empty text is shown in quotes
    assert parse_text(shown, PLAIN[name]) == value
    meaning = field_docs(type(getattr(Config(), section)))[key]
    assert meaning.endswith(".") and meaning in " ".join(text.split())


@pytest.mark.parametrize("name", PRESETS)
def test_the_values_are_those_of_the_configuration(name):
    config = preset(name)
    text = settings_help(config)
    assert line("model.num_layers", text).endswith(f": {config.model.num_layers}")
    assert line("train.steps", text).endswith(f": {config.train.steps}")
    assert line("model.router_type", text).endswith(f": {config.model.router_type}")


def test_a_list_is_shown_as_it_is_typed():
    config = read_config("tiny", ["--model.num_experts", "2,2,4,4", "--model.router_top_k", "2"])
    assert line("model.num_experts", settings_help(config)) == (
        "  --model.num_experts INT|INT,INT,... (at least 0): 2,2,4,4"
    )


def test_alarms_are_explained_once_and_have_one_line_of_values_each():
    config = override(Config(), {"observe": {"cv": {"action": "stop", "window": 3}}})
    text = settings_help(config)
    assert line("observe.cv.*", text) == (
        "  --observe.cv.*: threshold 0.3, window 3, patience 100, action stop"
    )
    words = " ".join(text.split())
    for key, meaning in field_docs(Rule).items():
        assert words.count(meaning) == 1
        assert f"--observe.NAME.{key} " in text
    for name in ALARMS:
        assert text.count(f"--observe.{name}.*") == 1
        assert field_docs(ObserveConfig)[name] in words
    assert "switch router). Actions: off, warn, raise_aux, nudge_bias, stop." in words


def test_only_the_named_sections_are_shown():
    text = settings_help(Config(), ("train", "parallel"))
    assert "--train.steps" in text and "--parallel.compile" in text
    assert not re.search(r"--(model|data|observe)\.", text)


@pytest.mark.parametrize("columns", [72, 80, 100, 300])
def test_no_line_is_wider_than_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    widest = max(map(len, settings_help(Config()).splitlines()))
    assert min(columns, 100) - 12 < widest <= min(columns, 100)


def test_every_field_has_a_docstring():
    for section in (*(type(getattr(Config(), name)) for name in ("model", "data", "train")), Rule):
        assert list(field_docs(section)) == list(section.__dataclass_fields__)
