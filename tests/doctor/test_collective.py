"""Tests of a sum over processes on the CPU."""

import re

import pytest

from moebius.doctor.collective import collective
from moebius.doctor.trial import TrialFailed


def test_a_sum_over_processes(tmp_path, monkeypatch):
    for name in ("queue", "json", "types", "random", "token"):  # these are not imported
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    figures = collective(tmp_path, "gloo", 2)
    assert re.fullmatch(r"right on 2 gloo processes, [\d.]+ [GM]B/s each way", figures)


def test_a_process_that_fails_is_named(tmp_path):
    with pytest.raises(TrialFailed, match="rank 0 of 1"):
        collective(tmp_path, "carrier-pigeon", 1)
