"""Tests of `moebius ablate` that do not measure any variant."""

import os
import signal

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
        (["--over", "model.router_top_k=1,13"], "router_top_k=13: model.router_top_k=13: must be"),
        (["--over", "model.dim=128", "--over", "model.num_heads=2,3"], "num_heads=3: "),
        (["--over", "train.name=x,y"], "--over train.name: changes neither"),
        (["--over", "train.steps=5,6"], "--over train.steps: changes neither"),
        (["--over", "data.workers=1,2"], "--over data.workers: changes neither"),
        (["--round", "3"], "did you mean --rounds?"),
        (["--twin", "--html", "page"], "--html page: the file's name must end with .html"),
    ],
)
def test_an_option_that_makes_no_sense(options, part, moebius):
    refused(moebius("ablate", "tiny", *options), 2, part)


def test_a_page_that_cannot_be_written_is_refused_first(moebius):
    result = moebius("ablate", "tiny", "--twin", "--html", "/nowhere/at/all.html")
    refused(result, 6, "/nowhere/at is not a directory")


def test_nothing_that_could_be_run_is_an_error(monkeypatch, moebius):
    class Nothing:
        sound = ()
        stopped_by = None

    monkeypatch.setattr("moebius.ablate.run.ablate", lambda *_: Nothing())
    monkeypatch.setattr("moebius.ablate.tables.lines", lambda _: ["the table"])
    result = moebius("ablate", "tiny", "--twin")
    refused(result, 1, "no variant could be run")
    assert result.out == "the table\n"


def test_progress_is_shown_in_a_pipe_and_a_stopped_ablation_shows_its_rounds(
    monkeypatch, moebius, tmp_path
):
    """The second round of the second variant is interrupted, as by a scheduler."""
    asked = []

    class Worker:
        def __init__(self, config):
            pass

        def ask(self, task, **arguments):
            asked.append(task)
            if asked.count("run") == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            warm = {"device": "CPU", "notes": []}
            return warm | {"seconds": 0.5, "crowding": "", "peak_bytes": 1e9}

        def end(self):
            asked.append("end")

    monkeypatch.setattr("moebius.ablate.stage.Worker", Worker)
    result = moebius("ablate", "tiny", "--over", "model.router_top_k=1,2")
    assert result.code == 143 and asked.count("end") == 3
    assert "round 1 of 8\nround 2 of 8\n" in result.err
    assert result.err.endswith("moebius: stopped by SIGTERM; the figures are those of 1 round\n")
    assert result.out.count(" 500.0 ") == 3
