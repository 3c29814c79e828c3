"""A run that is loaded has its own tokenizer, or there is none."""

import json
import shutil
from pathlib import Path

import pytest

import moebius
from moebius.config import DataConfig
from moebius.data.tokenizer import prepare_tokenizer
from moebius.errors import DataError
from moebius.train.run_directory import RunDirectory
from tests.cli.conftest import trained

__all__ = ["trained"]  # a fixture


@pytest.fixture
def run(trained, tmp_path) -> RunDirectory:
    """A copy of a trained run."""
    return RunDirectory(shutil.copytree(trained / "runs" / "run", tmp_path / "run"))


def test_a_tokenizer_that_is_gone_is_named(run):
    run.tokenizer_path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: the run's tokenizer was deleted"):
        moebius.load(run.root, device="cpu")


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
        moebius.load(run.root, device="cpu")
