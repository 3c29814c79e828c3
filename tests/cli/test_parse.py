"""Tests of splitting a command's words into arguments, options and settings."""

import pytest

from moebius.cli.parse import option_parser, parse
from moebius.cli.registry import command_named, commands
from moebius.errors import ConfigError
from tests.cli.command_line import refused


def parsed(name: str, *words: str) -> dict[str, object]:
    return vars(parse(command_named(name), words))


@pytest.mark.parametrize(
    ("words", "config", "settings"),
    [
        ([], "tiny", []),
        (["my.toml"], "my.toml", []),
        (["--train.steps", "5"], "tiny", ["--train.steps", "5"]),
        (["dense", "--train.steps=5", "--x.y", "-1"], "dense", ["--train.steps=5", "--x.y", "-1"]),
        (["dense", "--train.name", " a b "], "dense", ["--train.name", " a b "]),
        (["dense", "--model.num_experts", "[1, 2]"], "dense", ["--model.num_experts", "[1, 2]"]),
        (["dense", "--lr", "1e-3"], "dense", ["--lr", "1e-3"]),
        (["--lr", "1e-3"], "tiny", ["--lr", "1e-3"]),
        (["dense", "-lr", "1e-3"], "dense", ["-lr", "1e-3"]),
    ],
)
def test_config_and_settings(words, config, settings):
    assert parsed("train", *words) == {"config": config, "settings": settings}


def test_options_may_stand_anywhere():
    expected = parsed("plan", "dense", "--train.steps", "5", "--gpus", "8", "--json")
    assert expected["gpus"] == 8 and expected["settings"] == ["--train.steps", "5"]
    assert parsed("plan", "--json", "dense", "--gpus=8", "--train.steps", "5") == expected
    assert parsed("plan", "--gpus", "8", "dense", "--train.steps", "5", "--json") == expected


def test_an_integer_may_be_written_with_an_exponent():
    assert parsed("plan", "--gpus", "1e1")["gpus"] == 10
    assert parsed("generate", "x", "--max-tokens=2e3")["max_tokens"] == 2000


@pytest.mark.parametrize("name", commands())
def test_every_option_with_one_value_may_be_given_once(name):
    """However it reads its value, and whether the values are the same or not."""
    for action in option_parser(command_named(name))._actions:
        flag = action.option_strings[0]
        if action.nargs == 0 or isinstance(action.default, list):
            continue
        with pytest.raises(ConfigError, match=f"{flag}: given twice, as '1' and as '1'"):
            parse(command_named(name), [flag, "1", flag, "1"])


def test_a_run_and_options():
    assert parsed("generate", "--seed", "3", "runs/x", "--prompt", "-1")["run"] == "runs/x"
    assert parsed("generate", "runs/x", "--prompt", "a b")["prompt"] == "a b"
    assert "settings" not in parsed("generate", "runs/x")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        # an argument that is missing, in the wrong place, or given with a flag
        (["generate"], "RUN is missing; usage: `moebius generate RUN [options]`"),
        (["resume", "--train.steps", "5"], "RUN is missing; usage: `moebius resume"),
        (["resume", "--train.steps", "5", "runs/x"], "'runs/x' was not expected here; RUN must"),
        (["train", "--train.steps", "5", "tiny"], "'tiny' was not expected here; CONFIG must"),
        (["train", "--train.steps=5", "tiny"], "'tiny' was not expected here; CONFIG must"),
        (["train", "tiny", "stray"], "'stray' was not expected here; usage: `moebius train"),
        (["train", "tiny", "--train.steps", "5", "6"], "'6' was not expected here; several"),
        (["train", "tiny", "--data.source", "a", "b"], "several values are separated by commas"),
        (["plan", "--gpus", "many"], "--gpus: not an integer: 'many'; `moebius plan --help`"),
        (["profile", "--seconds", "x"], "--seconds: not a number: 'x'"),
        (["doctor", "tiny"], "'tiny' was not expected here; usage: `moebius doctor [--section."),
        (["train", "--config", "my.toml"], "first, as in `moebius train my.toml`"),
        (["train", "--config=my.toml"], "first, as in `moebius train my.toml`"),
        (["plan", "--gpus", "8", "--preset", "dense"], "first, as in `moebius plan dense`"),
        (["train", "-c"], "-c: CONFIG has no flag and comes first, as in `moebius train CONFIG`"),
        (["generate", "--run", "runs/x"], "RUN has no flag and comes first, as in `moebius"),
        # options
        (["generate", "x", "--max-tokens", "many"], "--max-tokens: not an integer: 'many'; `"),
        (["generate", "x", "--max-tokens"], "--max-tokens: expected one argument"),
        (["generate", "x", "--max-token", "3"], "unknown option; did you mean --max-tokens?"),
        (["generate", "x", "--max_tokens", "3"], "unknown option; did you mean --max-tokens?"),
        (["generate", "x", "--beam", "3"], "--beam: unknown option; `moebius generate --help` l"),
        (["generate", "x", "--train.device", "cpu"], "--train.device: unknown option"),
        (["generate", "x", "--prompt", "a", "--prompt=b"], "given twice, as 'a' and as 'b'"),
        (["generate", "x", "--seed", "0", "--seed", "0"], "--seed: given twice, as '0' and"),
        (["plan", "--gpu", "h100", "--gpu", "a100"], "--gpu: given twice, as 'h100' and"),
        (["plan", "--gpus", "1e1", "--gpus=2"], "given twice, as '10' and as '2'; give"),
        (["plan", "--gpus", "1.5"], "--gpus: not an integer: '1.5'"),
        (["plan", "--gpus", "1e400"], "--gpus: not an integer: '1e400'"),
        (["resume", "x", "--step", "3", "--step", "6"], "--step: given twice, as '3' and as '6'"),
        (["profile", "--verify", "--verify", "3"], "--verify: given twice, as '1' and as '3'"),
        (["profile", "--seconds", "3", "--seconds", "2.5"], "given twice, as '3' and as '2.5'"),
        (["profile", "--secnds", "3"], "--secnds: unknown option; did you mean --seconds?"),
    ],
)  # fmt: skip
def test_wrong_words(words, part):
    with pytest.raises(ConfigError) as refusal:
        parse(command_named(words[0]), words[1:])
    assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "--lr", "1e-3"], "did you mean --train.lr"),
        (["train", "standard", "--lr=1e-3"], "did you mean --train.lr"),
        (["plan", "--device", "gpu"], "--train.device"),
        (["profile", "--device", "gpu"], "--train.device"),
        (["train", "--n_layers", "3"], "did you mean --model.num_layers"),
    ],
)
def test_a_setting_without_its_section_gets_the_right_flag(words, part, moebius):
    refused(moebius(*words), 2, part)
