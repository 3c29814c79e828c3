"""Phases of a run: how a file names them, what is refused, and what follows from them."""

import math
from pathlib import Path
from typing import Any

import pytest

from moebius.config import Config, DataConfig, TrainConfig
from moebius.config.fields import plain
from moebius.config.files import from_values, read_config, to_toml
from moebius.config.help import settings_help
from moebius.config.in_phases import mixture_in_phase
from moebius.config.phases import Phase
from moebius.errors import ConfigError

PHASES = """\
[[train.phases]]
until = 1e5
schedule = "linear"
[[train.phases]]
until = 200_000
batch_size = 32
micro_batch_size = 4
[[train.phases]]
until = 3e5
schedule = "cosine"
lr_fraction = 0.1
seq_len = 512
weights = [0, 2]
"""
TWO_SOURCES = "[data]\nsource = 'a,b'\n"


def read(folder: Path, text: str, *flags: str) -> Config:
    """Return the configuration of a file with that text, based on `tiny`."""
    path = folder / "phases.toml"
    path.write_text('base = "tiny"\n' + text)
    return read_config(str(path), list(flags))


def phased(*phases: dict[str, Any], **settings: Any) -> TrainConfig:
    """Return train settings with these phases; a step without its own has 4 x 8 tokens."""
    own: dict[str, Any] = {"batch_size": 4, "seq_len": 8, "phases": phases}
    return TrainConfig(**(own | settings))


def test_a_file_has_a_table_for_each_phase_and_reads_back_as_the_same(tmp_path):
    config = read(tmp_path, TWO_SOURCES + PHASES)
    first, second, third = config.train.phases
    assert first == Phase(until=100_000, schedule="linear")
    assert second == Phase(until=200_000, batch_size=32, micro_batch_size=4)
    assert (third.weights, third.seq_len, third.lr_fraction) == ((0.0, 2.0), 512, 0.1)
    text = to_toml(config)
    assert text.count("[[train.phases]]") == 3 and "\nsteps = " not in text
    (tmp_path / "again.toml").write_text(text)
    assert read_config(str(tmp_path / "again.toml"), []) == config
    assert from_values(
        {"data": {"source": "a,b"}, "train": {"phases": plain(config.train.phases)}}
    )


def test_a_configuration_without_phases_reads_back_as_the_same(tmp_path):
    text = to_toml(Config())
    assert "phases" not in text and "steps = 10000" in text
    (tmp_path / "plain.toml").write_text(text)
    assert read_config(str(tmp_path / "plain.toml"), []) == Config()


def test_phases_can_be_added_to_a_whole_file(tmp_path):
    """The settings that they replace are then named in one error."""
    text = to_toml(Config()) + "\n[[train.phases]]\nuntil = 1e9\n"
    (tmp_path / "more.toml").write_text(text)
    with pytest.raises(ConfigError) as refusal:
        read_config(str(tmp_path / "more.toml"), [])
    assert "train.steps=10000: follows from train.phases" in str(refusal.value)
    text = text.replace("warmup_steps = 100", "warmup_steps = 7")
    (tmp_path / "more.toml").write_text(text)
    message = r"train.steps=10000, train.warmup_steps=7: follow .* warmup_steps=100; leave them"
    with pytest.raises(ConfigError, match=message):
        read_config(str(tmp_path / "more.toml"), [])
    (tmp_path / "more.toml").write_text(
        "".join(
            line
            for line in text.splitlines(True)
            if not line.startswith(("steps", "warmup_steps"))
        )
    )
    assert len(read_config(str(tmp_path / "more.toml"), []).train.phases) == 1


@pytest.mark.parametrize(
    ("flag", "value", "own"),
    [
        ("steps", "3", "steps=85"),
        ("schedule", "wsd", "schedule='cosine'"),
        ("warmup_steps", "3", "warmup_steps=100"),
        ("decay_fraction", "0.5", "decay_fraction=0.2"),
        ("min_lr_fraction", "0.5", "min_lr_fraction=0.1"),
    ],
)
def test_what_the_phases_replace_is_refused_as_a_flag_and_in_the_same_file(
    tmp_path, flag, value, own
):
    message = rf"train\.{flag}={value!r}|train\.{flag}={value}: follows from train\.phases.*{own}"
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, TWO_SOURCES + PHASES, f"--train.{flag}", value)
    shown = f'"{value}"' if value == "wsd" else value
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, f"{TWO_SOURCES}[train]\n{flag} = {shown}\n{PHASES}")


def test_what_the_base_says_is_replaced(tmp_path):
    config = read(tmp_path, TWO_SOURCES + PHASES)  # `tiny` has its own steps and warm-up
    assert (config.train.steps, config.train.warmup_steps) == (85, 100)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("200_000", "2", r"train.phases\[2\].until=2: ends before it begins, .* at 100000 tokens"),
        ("200_000", "1e5", r"train.phases\[2\].until=100000: ends before it begins"),
        ("1e5", "0", r"train.phases\[1\].until=0: must be at least 1"),
        ("1e5", "1.5", r"train.phases\[1\].until=1.5: must be an integer"),
        ("until = 1e5", "", r"train.phases\[1\]: until is missing"),
        ("batch_size = 32\n", "batchsize = 3\n", r"\[2\].batchsize: no such .* batch_size\?"),
        ("micro_batch_size = 4", "micro_batch_size = 5", r"micro_batch_size=5: must divide"),
        ("batch_size = 32\n", "", r"\[2\].micro_batch_size=4: must divide the batch size \(6\)"),
        ("cosine", "cosin", r"\[3\].schedule='cosin': must be one of .*did you mean cosine\?"),
        ("[0, 2]", "[1, 2, 3]", r"\[3\].weights=\[1.0, 2.0, 3.0\]: must be one number for each"),
        ("[0, 2]", "[0, 0]", r"\[3\].weights=\[0.0, 0.0\]: not all may be 0"),
        ("[0, 2]", "[0, -2]", r"\[3\].weights=\[0.0, -2.0\]: must be at least 0"),
        ("0.1", "-1", r"\[3\].lr_fraction=-1.0: must be at least 0"),
    ],
)
def test_phases_that_are_refused_are_named_by_their_number(tmp_path, old, new, message):
    batch = "[train]\nbatch_size = 6\n"
    text = TWO_SOURCES + batch + PHASES.replace(old, new, 1)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("text", ["[train]\nphases = 3", "[train.phases]\nuntil = 3"])
def test_what_is_no_list_of_tables(tmp_path, text):
    with pytest.raises(ConfigError, match=r"train.phases=.*: must be a list of tables"):
        read(tmp_path, text)


def test_a_flag_cannot_name_phases(tmp_path):
    with pytest.raises(ConfigError, match=r"train.phases=3: must be a list of tables"):
        read(tmp_path, "", "--train.phases", "3")


def test_a_phase_cannot_use_a_source_that_is_not_prepared():
    data = DataConfig(source="a,b", weights=(1, 0))
    phase = {"until": 10, "weights": (0.5, 0.5)}
    with pytest.raises(ConfigError, match=r"\[1\].weights=.*: source 2 is not prepared"):
        Config(data=data, train=phased(phase))
    fine = Config(data=data, train=phased(phase | {"weights": (0.5, 0)}))
    assert mixture_in_phase(fine, 0) == (0.5,)


@pytest.mark.parametrize("until", [1, 31, 32, 33, 320])
def test_a_phase_ends_with_the_first_step_that_reaches_its_tokens(until):
    train = phased({"until": until}, {"until": 1000, "batch_size": 8})
    step, tokens, per_phase = 0, 0, [0, 0]
    while not train.is_over(step, tokens):
        assert train.last_step(step, tokens) == train.steps
        number = train.phase_at(tokens)
        assert number == (tokens >= until)
        tokens += train.tokens_per_step(number)
        per_phase[number] += 1
        step += 1
    assert step == train.steps and train.phase_at(tokens) == 1
    assert per_phase[0] == math.ceil(until / 32)
    assert 1000 <= tokens < 1000 + 64


def test_a_phase_may_be_over_before_it_begins_because_of_rounding():
    train = phased({"until": 10}, {"until": 20}, {"until": 64})
    assert train.steps == 2 and train.phase_at(32) == 2


def test_a_run_without_phases_ends_at_its_steps():
    train = TrainConfig(steps=10)
    assert not train.is_over(9, 10**9) and train.is_over(10, 0)
    assert train.last_step(3, 0) == 10 and train.phase_at(10**9) == 0


def test_the_longest_sequences_are_those_of_the_phases_that_have_begun():
    train = phased({"until": 32}, {"until": 64, "seq_len": 16}, {"until": 99, "seq_len": 4})
    assert [train.longest_seq_len(tokens) for tokens in (0, 32, 33, 99)] == [8, 8, 16, 16]
    assert TrainConfig(seq_len=8).longest_seq_len(10**9) == 8


def test_the_help_describes_a_phase():
    text = " ".join(settings_help(Config(), ["train.phases"]).split())
    assert "[[train.phases]] in a TOML file" in text and "until = int: Tokens of the run" in text
