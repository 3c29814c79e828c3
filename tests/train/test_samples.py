"""Tests of the record of a run's samples."""

import json

import pytest

from moebius.errors import StorageError
from moebius.train.run_directory import RunDirectory
from moebius.train.samples import SAMPLES, record_sample


def test_samples_are_kept_with_their_steps(tmp_path):
    run = RunDirectory(tmp_path)
    for step, text in ((10, "a\nb"), (20, "\u2028c"), (30, "d"), (20, "e")):
        record_sample(run, step, "def ", text)
    lines = [json.loads(line) for line in (tmp_path / SAMPLES).read_text().splitlines()]
    assert [(line["step"], line["text"]) for line in lines] == [(10, "a\nb"), (20, "e")]
    assert lines[0]["prompt"] == "def "


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / SAMPLES).mkdir()
    with pytest.raises(StorageError, match=r"samples\.jsonl"):
        record_sample(RunDirectory(tmp_path), 1, "", "text")
