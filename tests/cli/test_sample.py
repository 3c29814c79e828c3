"""A continuation comes from the run's own weights and tokenizer, or there is none."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from moebius.cli.sample import continuation
from moebius.config import DataConfig
from moebius.data.tokenizer import prepare_tokenizer
from moebius.errors import DataError
from moebius.train.run_directory import RunDirectory

CPU = torch.device("cpu")


@pytest.fixture
def run(trained, tmp_path) -> RunDirectory:
    """A copy of a trained run."""
    return RunDirectory(shutil.copytree(trained / "runs" / "run", tmp_path / "run"))


def text(run: RunDirectory) -> str:
    return "".join(continuation(run, CPU, "line", 5))


def test_a_tokenizer_that_is_gone_is_named(run):
    run.tokenizer_path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: the run's tokenizer was deleted"):
        continuation(run, CPU, "line", 5)


def swap_two_ids(path: Path) -> None:
    contents = json.loads(path.read_text())
    vocabulary = contents["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(contents))


def use_more_ids(path: Path) -> None:
    prepare_tokenizer(DataConfig(), 300, ["line after line " * 50]).save(path)


@pytest.mark.parametrize("change", [swap_two_ids, use_more_ids])
def test_a_tokenizer_that_has_changed_is_named(run, change):
    change(run.tokenizer_path)
    with pytest.raises(DataError, match=r"tokenizer\.json: the run's tokenizer has changed"):
        continuation(run, CPU, "line", 5)
