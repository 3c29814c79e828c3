"""The examples of the README and the guide work as they are printed there."""

import re
import tomllib
from pathlib import Path

import pytest

from moebius.config.files import override
from moebius.config.presets import PRESETS, preset
from moebius.cost.counts import active_parameters, parameters
from moebius.train.schedule import learning_rate

ROOT = Path(__file__).parent.parent
README, TRAIN = ROOT / "README.md", ROOT / "docs" / "train.md"


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_first_block_is_the_two_commands():
    first = blocks(README, "")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make train", "make test"]


def test_the_python_example_runs(capsys):
    (example,) = blocks(TRAIN, "python")
    exec(compile(example, str(TRAIN), "exec"), {})
    line = r"\d\.\d\d nats per token, balance loss of the first layer \d\.\d\d"
    assert re.search(line, capsys.readouterr().out)


def test_the_toml_example_is_a_configuration():
    example, _ = blocks(TRAIN, "toml")
    values = tomllib.loads(example)
    config = override(preset(values.pop("base")), values)
    assert (config.model.num_experts, config.train.steps) == (6, 50_000)


def test_the_toml_example_of_phases_is_a_warm_up_a_stable_part_and_a_decay():
    _, example = blocks(TRAIN, "toml")
    values = tomllib.loads(example)
    train = override(preset(values.pop("base")), values).train
    tokens = (0, 5 * 10**8, 10**9, 17 * 10**9, 19 * 10**9, 20 * 10**9 - 1)
    rates = [learning_rate(0, train, at) / train.lr for at in tokens]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.55, 0.1], abs=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_presets_has_their_parameters(name):
    model = preset(name).model
    row = next(line for line in TRAIN.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    assert f"{sum(parameters(model).values()) / 1e6:.1f}M" in row
    assert f"{active_parameters(model) / 1e6:.1f}M" in row
