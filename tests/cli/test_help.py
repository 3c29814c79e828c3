"""Tests of what the help of commands shows."""

import dataclasses
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from moebius.cli.parse import option_parser
from moebius.cli.registry import commands
from moebius.config import Config
from moebius.config.presets import PRESETS, preset
from tests.cli.command_line import SECONDS, refused

COMMANDS = commands()


def settings(tree: Any) -> list[str]:
    """Return the dotted name of every setting, with NAME.* for the four settings of an alarm."""
    names = []
    for section in dataclasses.fields(tree):
        values = getattr(tree, section.name)
        for name in (field.name for field in dataclasses.fields(values)):
            value = getattr(values, name)
            suffix = ".*" if dataclasses.is_dataclass(value) else ""
            names.append(f"{section.name}.{name}{suffix}")
    return names


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, moebius):
    result, command = moebius(name, "--help"), COMMANDS[name]
    assert result.code == 0 and not result.err
    usage = result.out.partition("\n\n")[0]
    assert " ".join(usage.split()) == f"usage: {command.usage_line}"
    assert all(example in result.out for example in command.examples)
    for argument in command.arguments:
        assert f"{argument.metavar} is {argument.help}" in " ".join(result.out.split())
    for action in option_parser(command)._actions:
        assert action.option_strings[0] in result.out
        assert action.help and action.help.split("%")[0][:30] in " ".join(result.out.split())


@pytest.mark.parametrize("columns", ["", "72", "80", "100", "300"])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_no_line_is_wider_than_the_terminal(name, columns, moebius, monkeypatch):
    """Examples stay whole, to be copied; all of them fit into 80 columns."""
    monkeypatch.setattr("sys.__stdout__", None)  # as in a pipe, whose width is not known
    monkeypatch.setenv("COLUMNS", columns)
    width = min(int(columns or 80), 100)
    examples = {f"  {example}" for example in COMMANDS[name].examples} if name else set()
    assert all(len(example) <= 80 for example in examples)
    lines = moebius(*filter(None, [name]), "--help").out.splitlines()
    assert [line for line in lines if len(line) > width and line not in examples] == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name].settings])
def test_help_lists_every_setting_and_every_preset(name, moebius):
    shown = moebius(name, "--help").out
    for setting in settings(Config()):
        is_listed = bool({setting, setting.split(".")[0]} & set(COMMANDS[name].settings))
        assert bool(re.search(rf"(--|\[\[){re.escape(setting)}(?![\w.])", shown)) == is_listed, (
            setting
        )
    if "[CONFIG]" in COMMANDS[name].usage:
        assert all(f"  {known} " in shown for known in PRESETS)


def test_help_begins_with_what_a_newcomer_needs(moebius):
    shown = moebius("train", "--help").out
    places = [
        shown.index(text)
        for text in ("usage: ", "  tiny ", "  dense_112m ", "examples:", "--model.vocab_size")
    ]
    assert places == sorted(places)
    start = shown[: shown.index("--model.vocab_size")]
    assert start.count("\n") < 35


def value_in(shown: str, setting: str) -> str:
    """Return the lines of the help that are about one setting."""
    match = re.search(rf"\n  --{re.escape(setting)} (.*?)(?=\n  --|\Z)", shown, re.DOTALL)
    assert match
    return match[1]


def test_help_shows_the_values_of_the_configuration_that_is_named(trained, moebius):
    for name, words in (
        ("tiny", ["train", "--help"]),
        ("standard", ["train", "standard", "--help"]),
        ("dense_112m", ["plan", "--help", "dense_112m"]),
    ):
        model, shown = preset(name).model, moebius(*words).out
        assert f"the values shown are those of {name})" in " ".join(shown.split())
        assert f": {model.vocab_size}\n" in value_in(shown, "model.vocab_size")
        assert f": {model.base_expansion}\n" in value_in(shown, "model.base_expansion")
    run = trained / "runs" / "run"
    shown = moebius("resume", run, "--help").out
    assert ": 10\n" in value_in(shown, "train.steps") and f"those of {run}" in " ".join(
        shown.split()
    )
    refused(moebius("train", "stadard", "--help"), 2, "did you mean standard?")


def test_help_on_a_terminal_without_unicode():
    done = subprocess.run(
        [sys.executable, "-m", "moebius", "train", "--help"],
        capture_output=True, text=True, check=True, timeout=SECONDS,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert "--model.vocab_size" in done.stdout and not done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_points_to_nothing_that_is_not_installed(name, moebius):
    shown = moebius(name, "--help").out
    assert not re.search(r"\b(docs|bench|tests)/|README|\.md\b", shown)
