"""Tests of the options of `moebius profile`, which are checked before anything is measured."""

import pytest

from tests.cli.command_line import refused


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
