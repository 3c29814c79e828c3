"""Tests of `moebius ablate` that do not measure any variant."""

import pytest

from tests.cli.command_line import refused


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--rounds", "-1"], "--rounds -1"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--learn", "5", "--learn-seconds", "1"], "--learn and --learn-seconds"),
        (["--seeds", "2"], "--seeds 2"),
        (["--over", "model.dims=3"], "model.dim"),
        (["--round", "3"], "did you mean --rounds?"),
    ],
)
def test_an_option_that_makes_no_sense(options, part, moebius):
    refused(moebius("ablate", "tiny", *options), 2, part)


def test_nothing_that_could_be_run_is_an_error(monkeypatch, moebius):
    class Nothing:
        sound = ()

    monkeypatch.setattr("moebius.ablate.run.ablate", lambda *_: Nothing())
    monkeypatch.setattr("moebius.ablate.tables.lines", lambda _: ["the table"])
    result = moebius("ablate", "tiny", "--twin")
    refused(result, 1, "no variant could be run")
    assert result.out == "the table\n"
