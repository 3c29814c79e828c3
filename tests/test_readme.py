"""What the README shows works as it stands there."""

import re
import tomllib
from pathlib import Path

import pytest

from moebius.cost import active_parameters, parameters
from moebius.presets import PRESETS, preset
from moebius.settings import override

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def test_it_opens_with_the_two_commands():
    first = blocks("")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make train", "make test"]


def test_the_python_example_runs(capsys):
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert re.search(r"\d\.\d\d nats per token, balance loss of the first layer \d\.\d\d", capsys.readouterr().out)


def test_the_toml_example_is_a_configuration():
    (example,) = blocks("toml")
    values = tomllib.loads(example)
    config = override(preset(values.pop("base")), values)
    assert (config.model.num_experts, config.train.steps) == (6, 50_000)


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_presets(name):
    model = preset(name).model
    row = next(line for line in README.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    assert f"{sum(parameters(model).values()) / 1e6:.1f}M" in row
    assert f"{active_parameters(model) / 1e6:.1f}M" in row
