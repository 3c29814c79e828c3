"""Tests of `moebius doctor` that do not examine the machine."""

import os
import signal
from types import SimpleNamespace

import pytest

from tests.cli.command_line import Result, refused


@pytest.fixture
def diagnosis(monkeypatch) -> SimpleNamespace:
    """What the examination returns, after it has said one line."""
    diagnosis = SimpleNamespace(failed=[], verdict=lambda: "the verdict")

    def examine(config, device, say):
        say(f"on {device}")
        return diagnosis

    monkeypatch.setattr("moebius.doctor.examine.examine", examine)
    monkeypatch.setattr("moebius.doctor.examine.as_json", lambda _: "{}")
    return diagnosis


def test_lines_or_json(diagnosis, moebius):
    cpu = ("doctor", "--train.device", "cpu")
    assert moebius(*cpu) == Result(0, "on cpu\nthe verdict\n", "")
    assert moebius(*cpu, "--json") == Result(0, "{}\n", "")


def test_a_check_that_failed_is_an_error(diagnosis, moebius):
    diagnosis.failed = ["a check"]
    result = moebius("doctor", "--train.device=cpu", "--json")
    refused(result, 5, "the verdict")
    assert result.out == "{}\n"


def test_settings_are_checked(diagnosis, moebius):
    refused(moebius("doctor", "--train.device", "gpu"), 2, "train.device='gpu'")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_doctor_that_is_stopped_before_the_self_test_says_so(number, monkeypatch, moebius):
    monkeypatch.setattr("moebius.doctor.examine.examine", lambda *_: os.kill(os.getpid(), number))
    refused(
        moebius("doctor", "--train.device=cpu"),
        128 + number,
        f"doctor was stopped by {number.name} before the self-test; every check is incomplete",
    )
