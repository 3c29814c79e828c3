"""Tests of the record of the machine that a run is trained with."""

import json

import pytest
import torch

from moebius.errors import StorageError
from moebius.train.environment import ENVIRONMENT, record_environment
from moebius.train.run_directory import RunDirectory

CPU = torch.device("cpu")


def lines(run: RunDirectory):
    """Return the lines of the record."""
    return [json.loads(line) for line in (run.root / ENVIRONMENT).read_text().splitlines()]


def test_each_process_adds_a_line(tmp_path):
    run = RunDirectory(tmp_path)
    record_environment(run, 0, CPU, 1)
    record_environment(run, 50, CPU, 2)
    first, second = lines(run)
    assert (first["step"], second["step"], second["processes"]) == (0, 50, 2)
    assert first["torch"] and first["device"].startswith("CPU")


def test_steps_that_the_run_went_back_from_are_forgotten(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (0, 50, 100, 50):
        record_environment(run, step, CPU, 1)
    assert [line["step"] for line in lines(run)] == [0, 50, 50]


def test_environment_variables_are_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    record_environment(RunDirectory(tmp_path), 0, CPU, 1)
    assert "a-secret" not in (tmp_path / ENVIRONMENT).read_text()


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / ENVIRONMENT).mkdir()
    with pytest.raises(StorageError, match=r"environment\.jsonl"):
        record_environment(RunDirectory(tmp_path), 0, CPU, 1)
