"""Tests of `moebius config`."""

import json

import pytest

from moebius.config.files import read_config
from moebius.config.presets import PRESETS, preset
from tests.cli.command_line import refused


@pytest.mark.parametrize("name", PRESETS)
def test_what_it_prints_is_the_same_configuration_again(name, tmp_path, moebius):
    result = moebius("config", name, "--train.lr", "3e-4", "--observe.cv.patience=7")
    assert result.code == 0 and not result.err
    file = tmp_path / "my.toml"
    file.write_text(result.out)
    config = read_config(str(file), [])
    assert config == read_config(name, ["--train.lr=3e-4", "--observe.cv.patience=7"])
    assert config != preset(name)
    assert moebius("config", file) == result


def test_without_a_configuration_it_is_tiny(moebius):
    assert moebius("config") == moebius("config", "tiny")
    assert "vocab_size = 2048\n" in moebius("config").out


@pytest.mark.parametrize("name", PRESETS)
def test_other_commands_accept_what_it_prints(name, tmp_path, moebius):
    file = tmp_path / "my.toml"
    file.write_text(moebius("config", name).out)
    on = ("--gpu", "h100", "--gpus", "64", "--json")
    planned = [moebius("plan", source, *on) for source in (name, file)]
    assert planned[0] == planned[1] and json.loads(planned[0].out)


def test_the_configuration_of_a_run(trained, moebius):
    run = trained / "runs" / "run"
    assert moebius("config", run).out == (run / "config.toml").read_text()
    assert moebius("config", run, "--train.steps", "77").out.count("steps = 77\n") == 1


def test_a_configuration_that_is_wrong(tmp_path, moebius):
    refused(moebius("config", "tiyn"), 2, "preset 'tiyn'", "did you mean tiny?")
    refused(moebius("config", tmp_path), 2, str(tmp_path))
    refused(moebius("config", "tiny", "--model.dmi", "3"), 2, "did you mean --model.dim")
