"""Tests of the options of `moebius profile`, which are checked before anything is measured."""

import pytest

from tests.cli.command_line import refused
from tests.profile.made_up import made_up, small_config


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--seconds", "0"], 2, "--seconds 0: must be a number above 0"),
        (["--seconds", "inf"], 2, "--seconds inf: must be a number above 0"),
        (["--seconds", "nan"], 2, "--seconds nan: must be a number above 0"),
        (["--verify", "-1"], 2, "--verify -1: the number of findings to verify must be at least"),
        (["--chart", "chart.svg"], 2, "--chart chart.svg: the file's name must end with .png"),
        (["--html", "page"], 2, "--html page: the file's name must end with .html"),
        (["--html", "/nowhere/at/all.html"], 6, "/nowhere/at is not a directory"),
    ],
)
def test_an_option_that_makes_no_sense(options, code, part, moebius):
    refused(moebius("profile", "tiny", *options), code, part)


@pytest.mark.parametrize(
    ("verify", "said"), [(["--verify"], True), (["--verify", "3"], True), ([], False)]
)
def test_a_verification_without_a_finding_says_so(verify, said, moebius, monkeypatch):
    profiled = made_up(small_config())
    monkeypatch.setattr("moebius.profile.profile.profile", lambda *_: (profiled, None))
    monkeypatch.setattr("moebius.profile.findings.findings", lambda *_: [])
    result = moebius("profile", "tiny", "--train.device=cpu", *verify)
    assert result.code == 0
    assert ("\nverified   nothing, because there is no finding to verify\n" in result.out) == said
