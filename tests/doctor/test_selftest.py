"""Tests that the self-test continues after a failure, and says what to do."""

import os
import signal

import pytest
import torch

from moebius.config import Config
from moebius.doctor import small_run
from moebius.doctor.selftest import self_test
from moebius.errors import Interrupted
from moebius.model.attention import SDPA_EXPANDED


def raising(x, routing, weights):
    raise RuntimeError("no kernel image\nis available")


@pytest.mark.usefixtures("without_a_run")
def test_a_backend_that_fails_is_named_and_the_others_are_tried(doctor, monkeypatch):
    monkeypatch.setattr("moebius.moe.experts.grouped", raising)
    result = doctor()
    assert result.code == 5
    assert result.outcomes == {
        "loop experts, float32": "ok",
        "grouped experts, float32": "FAILED",
        "float8 experts, float32": "ok",
        "sdpa attention, float32": "ok",
    }
    assert "RuntimeError: no kernel image is available" in result.out
    assert result.err.count("\n") == 1 and "--parallel.expert_backend loop; " in result.err


@pytest.mark.usefixtures("without_a_run")
@pytest.mark.parametrize(
    ("backend", "instead", "trial", "remedy"),
    [
        (
            "moebius.moe.float8.float8",
            raising,
            "float8 experts, float32",
            "--train.expert_dtype auto; ",
        ),
        (
            "moebius.model.attention.SDPA_EXPANDED",
            SDPA_EXPANDED._replace(mask=lambda document_BS: None),
            "sdpa attention, float32",
            "FAILED: reinstall torch",
        ),
    ],
)
def test_each_backend_has_its_own_remedy(doctor, monkeypatch, backend, instead, trial, remedy):
    monkeypatch.setattr(backend, instead)
    result = doctor()
    assert result.code == 5 and result.outcomes[trial] == "FAILED"
    assert result.err.count("\n") == 1 and remedy in result.err


def test_if_training_fails_the_trials_that_need_its_run_fail_too(doctor, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no compiler")

    monkeypatch.setattr(small_run, "start", broken)
    result = doctor()
    assert result.code == 5 and "ValueError: no compiler" in result.out
    need_the_run = ("training", "resume, bit by bit", "a flipped bit is noticed")
    assert [result.outcomes[name] for name in need_the_run] == ["FAILED"] * 3
    assert result.outcomes["order of the data"] == "ok"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_self_test_names_what_is_incomplete(number, monkeypatch):
    def stop(*_: object) -> str:
        os.kill(os.getpid(), number)
        return "never"

    monkeypatch.setattr("moebius.doctor.selftest._agreements", lambda *_: [])
    monkeypatch.setattr("moebius.doctor.selftest.SmallRun.learns", lambda _: "fine")
    monkeypatch.setattr("moebius.doctor.selftest.SmallRun.resumes", stop)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        self_test(Config(), torch.device("cpu"), lambda line: None)
    assert str(stopped.value) == (
        f"doctor was stopped by {number.name} after 1 of 4 checks; incomplete: resume, bit by "
        "bit, a flipped bit is noticed, order of the data"
    )
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
