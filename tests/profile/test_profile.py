"""Tests of a whole profile, and of the command that prints one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moebius.cli import main
from moebius.config import Config
from moebius.config.files import to_toml
from moebius.profile.profile import profile

CPU = torch.device("cpu")


@pytest.mark.parametrize("experts", ["loop", "grouped"])
def test_rows_are_moved_for_every_choice_where_shapes_are_static(small, experts):
    config = replace(small, parallel=replace(small.parallel, expert_backend=experts))
    profiled, _ = profile(config, CPU, seconds=0.1)
    assert profiled.has_row_for_every_choice == (experts == "grouped")
    assert profiled.item == 4 and profiled.device.startswith("CPU")


@pytest.fixture
def file(small: Config, tmp_path: Path) -> str:
    """A configuration whose base MLP takes most of the time."""
    model = replace(small.model, base_expansion=64.0, num_layers=1)
    train = replace(small.train, batch_size=2, device="cpu")
    path = tmp_path / "base.toml"
    path.write_text(to_toml(replace(small, model=model, train=train)))
    return str(path)


def run(*arguments: str) -> int | str | None:
    """Return the exit code of `moebius profile`."""
    with pytest.raises(SystemExit) as stopped:
        main(["profile", *arguments, "--seconds=0.2", "--verify"])
    return stopped.value.code


@pytest.mark.heavy
def test_the_command_writes_json_a_picture_and_a_page(file, tmp_path, capsys):
    picture, page = tmp_path / "chart.png", tmp_path / "page.html"
    assert run(file, "--json", "--chart", str(picture), "--html", str(page)) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["covered"] > 0.5 and values["components"]
    assert values["findings"][0]["title"] == "an always-on base MLP"
    assert values["verified"][0]["finding"] == values["findings"][0]["title"]
    assert picture.exists() and "an always-on base MLP" in page.read_text()


def test_the_command_prints_the_components_the_findings_and_a_verification(file, capsys):
    assert run(file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("component ")
    begin = [next((word for word in line.split()), "") for line in lines]
    assert {"step", "floor", "covered", "text", "ceilings", "findings", "verified"} <= set(begin)
