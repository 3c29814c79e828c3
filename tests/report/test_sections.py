"""Tests of the text and the tables of a report."""

import json

import pytest

from moebius.observe.charts import Charts
from moebius.report.happenings import read_happenings
from moebius.report.run import read_run
from moebius.report.sections import (
    compared,
    configuration_section,
    happenings_section,
    key_figures,
    samples_section,
    time_section,
    verdict_box,
)
from moebius.report.verdict import Verdict
from tests.report.made_up_run import alarm, metrics_lines, write_run


def test_the_verdict_is_one_sentence_with_code():
    box = verdict_box(Verdict("bad", "Odd <b>", "it is <i>odd</i>", "run `moebius x`"), "a & b")
    assert "It is &lt;i&gt;odd&lt;/i&gt;; run <code>moebius x</code>." in box
    assert "Odd &lt;b&gt;" in box and "a &amp; b" in box


def test_the_key_figures(tmp_path):
    figures = dict(key_figures(read_run(write_run(tmp_path / "run"))))
    assert figures["step"] == "20 of 20"
    assert figures["tokens"] == "20.0k"
    assert figures["training time"] == "40.0 s"
    assert figures["held-out loss"] == "2.200"
    assert figures["MFU"] == "25.0%"


def test_figures_that_are_not_finite_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run", metrics_lines([1, 2], loss=lambda step: None))
    assert "loss" not in dict(key_figures(read_run(folder)))


def test_runs_are_compared(tmp_path):
    runs = [
        read_run(write_run(tmp_path / "one")),
        read_run(write_run(tmp_path / "two", flags=["--train.lr=0.5"])),
    ]
    html = "".join(compared(runs))
    assert '<td data-head="setting">train.lr</td>' in html
    assert '<td data-head="two">0.5</td>' in html
    assert "None, except" in "".join(compared([runs[0], runs[0]]))


def test_alarms_are_counted_and_listed():
    events = [*(alarm(step, "cv") for step in range(1, 31)), alarm(31, "cv", over=True)]
    html = "".join(happenings_section(read_happenings(events)))
    assert '<td data-head="times">30</td><td data-head="steps">1 to 30</td>' in html
    assert "21 before them" in html
    assert '<td data-head="still on">yes</td>' not in html
    still_on = "".join(happenings_section(read_happenings(events[:-1])))
    assert '<td data-head="still on">yes</td>' in still_on


def test_samples_are_escaped(tmp_path):
    folder = write_run(tmp_path / "run")
    sample = {"step": 5, "prompt": "a\n", "text": "</pre><script>\x1b[2J\n  code"}
    (folder / "samples.jsonl").write_text(json.dumps(sample))
    html = "".join(samples_section(read_run(folder)))
    assert "&lt;/pre&gt;&lt;script&gt;\\x1b[2J\n  code" in html
    assert "<h3>Step 5, after &#x27;a\\n&#x27;</h3>" in html


ROW = {
    "component": "experts",
    "parameters": 5,
    "flops": 1e9,
    "bytes": 1e6,
    "floor": 0.001,
    "forward": 0.002,
    "backward": 0.003,
    "waiting": 0,
    "share": 0.5,
    "efficiency": 0.2,
}


def test_where_the_time_goes(tmp_path):
    folder = write_run(tmp_path / "run")
    finding = {"title": "slow <b>", "evidence": "because", "flags": ["--train.lr=1"]}
    damaged = [3, {}, ROW | {"forward": "long"}, ROW | {"component": None}, {"component": "x"}]
    profile = {"device": "CPU", "components": [*damaged, ROW], "findings": [finding, 3]}
    (folder / "profile.json").write_text(json.dumps(profile))
    charts = Charts()
    html = "".join(time_section(read_run(folder), charts))
    (chart,) = charts.to_json()["charts"].values()
    assert chart["names"] == ["experts"] and chart["labels"] == ["50.0%"]
    assert [part["values"] for part in chart["series"]] == [[2], [3]]
    assert chart["floors"] == [1]
    assert "slow &lt;b&gt;" in html and "--train.lr=1" in html


@pytest.mark.parametrize("profile", [{}, {"components": []}, {"components": 3}])
def test_a_profile_without_components_is_not_shown(tmp_path, profile):
    folder = write_run(tmp_path / "run")
    (folder / "profile.json").write_text(json.dumps(profile))
    assert not list(time_section(read_run(folder), Charts()))


def test_the_configuration_the_machine_and_the_text(tmp_path):
    folder = write_run(tmp_path / "run", flags=["--train.lr=0.5"])
    line = {"step": 0, "device": "<GPU>", "torch": "2.11"}
    (folder / "environment.jsonl").write_text(json.dumps(line))
    html = "".join(configuration_section(read_run(folder)))
    assert "<dt>train.lr</dt><dd>0.5</dd>" in html and "all settings" in html
    assert "From step 1 on" in html and "<dd>&lt;GPU&gt;</dd>" in html
