"""Tests of the charts of a report."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moebius.config.phases import Phase
from moebius.cost.counts import training_flops_per_token
from moebius.observe.charts import Charts
from moebius.report.pictures import Pictures, smoothed, training_flops
from moebius.report.run import read_run
from tests.report.made_up_run import (
    EVEN,
    TOKENS,
    alarm,
    collapsed,
    config_of,
    falling,
    metrics_lines,
    write_run,
)


def charts_of(part: str, *folders, number: int | None = None) -> tuple[list[Any], list[Any]]:
    """Return the charts that a method of `Pictures` draws, and all places."""
    charts = Charts()
    pictures = Pictures([read_run(folder) for folder in folders], charts)
    list(getattr(pictures, part)(*([] if number is None else [number])))
    values = charts.to_json()
    return list(values["charts"].values()), values["axes"]


def names(chart: Any) -> list[str]:
    """Return the names of a chart's series, without those of single layers."""
    return [each["name"] for each in chart["series"] if each.get("style") != "faint"]


def test_the_loss_by_steps_tokens_time_and_flops(tmp_path):
    folder = write_run(tmp_path / "run")
    (chart,), axes = charts_of("loss", folder)
    assert names(chart) == ["training", "held out"]
    places = axes[chart["series"][0]["axes"]]
    assert places["tokens"] == [TOKENS * step for step in range(1, 21)]
    assert places["seconds"] == [2 * step for step in range(1, 21)]
    config = read_run(folder).config
    assert config is not None
    flops = training_flops_per_token(config.model, config.train.seq_len)
    assert places["flops"][-1] == pytest.approx(20 * TOKENS * flops, rel=1e-5)
    assert chart["series"][0]["y"] == pytest.approx([falling(n) for n in range(1, 21)], rel=1e-5)
    assert axes[chart["series"][1]["axes"]]["step"] == [5, 10, 15, 20]


def test_each_phase_has_the_flops_of_its_sequences():
    config = config_of("--train.seq_len=128")
    phases = (Phase(until=1_000), Phase(until=3_000, seq_len=512), Phase(until=4_000))
    config = replace(config, train=replace(config.train, phases=phases))
    short, long = (training_flops_per_token(config.model, length) for length in (128, 512))
    found = training_flops(config, np.array([500, 1_000, 2_000, 5_000]))
    expected = [500 * short, 1_000 * short, 1_000 * (short + long), 3_000 * short + 2_000 * long]
    assert long > short and found == pytest.approx(expected)


def test_several_runs_share_charts(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("one", "two")]
    (chart,), _ = charts_of("loss", *folders)
    assert names(chart) == ["one: training", "one: held out", "two: training", "two: held out"]
    assert len({each["color"] for each in chart["series"]}) == 2
    balance, _ = charts_of("balance", *folders)
    assert names(balance[0]) == ["one: worst layer", "two: worst layer"]


def test_the_layers_of_one_run(tmp_path):
    folder = write_run(tmp_path / "run", metrics_lines(range(1, 21), counts=collapsed))
    balance, _ = charts_of("balance", folder)
    cv, dead, entropy = balance  # nothing was dropped, and no token was without an expert
    series = {each["name"]: each["y"][-1] for each in cv["series"]}
    assert list(series) == ["layer 0", "layer 2", "mean", "worst layer"]
    assert series["worst layer"] == series["layer 0"] > 1.7 and series["layer 2"] == 0
    assert series["mean"] == pytest.approx(series["layer 0"] / 2, rel=1e-5)
    assert cv["limits"] == [{"value": 0.3, "name": "alarm"}]
    assert {each["name"]: each["y"][-1] for each in dead["series"]}["all layers"] == 3
    assert entropy["series"][-1]["y"][-1] == 0.9 and entropy["limits"] == []


def test_a_dense_run_has_no_charts_of_balance(tmp_path):
    lines = metrics_lines(range(1, 5), counts=lambda step: [[], []])
    folder = write_run(tmp_path / "run", lines, flags=["--model.num_experts=0"])
    assert charts_of("balance", folder)[0] == charts_of("heat", folder, number=0)[0] == []


def test_the_cells_of_the_heat_maps(tmp_path):
    """A row for each expert, a column for each logged step, with exactly its share."""
    lines = metrics_lines(range(1, 21), counts=lambda n: [[n, 1, 1, 2], [], EVEN])
    heat, axes = charts_of("heat", write_run(tmp_path / "run", lines), number=0)
    assert [chart["experts"] for chart in heat] == [4, 4]
    cells = np.frombuffer(base64.b64decode(heat[0]["cells"]), "<u2").reshape(20, 4) / 65_535
    expected = np.array([[n, 1, 1, 2] for n in range(1, 21)], float)
    assert cells == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-5)
    assert axes[heat[0]["axes"]]["step"] == list(range(1, 21))
    assert heat[0]["dead"] == pytest.approx(0.01)


def test_the_timeline(tmp_path):
    events = [
        alarm(5, "cv"),
        alarm(7, "dead_expert", experts=[1], done="expert 1 is now a copy of expert 0"),
        alarm(9, "cv", over=True),
        {"event": "skipped", "step": 11, "in_a_row": 1},
    ]
    (chart,), axes = charts_of("timeline", write_run(tmp_path / "run", None, events), number=0)
    assert chart["rows"] == ["cv", "dead_expert", "skipped update"]
    assert names(chart) == ["alarm", "alarm with an action", "alarm is over", "skipped update"]
    action = chart["series"][1]
    assert action["y"] == [1] and action["texts"][0].endswith("copy of expert 0")
    assert axes[action["axes"]]["tokens"] == [7 * TOKENS]
    assert chart["span"]["step"] == [1, 20]


def test_a_run_without_lines_has_no_charts(tmp_path):
    folder = write_run(tmp_path / "run", [])
    for part in ("loss", "speed", "balance"):
        assert charts_of(part, folder)[0] == []


@pytest.mark.parametrize("count", [0, 1, 10, 199])
def test_short_curves_are_not_smoothed(count):
    values = np.random.default_rng(0).standard_normal(count)
    assert smoothed(values) == pytest.approx(values)


def test_smoothing_keeps_lines_straight_and_gaps():
    values = np.arange(1000.0)
    values[[0, 500]] = np.nan
    smooth = smoothed(values)
    assert np.isnan(smooth[[0, 500]]).all() and np.isfinite(np.delete(smooth, [0, 500])).all()
    away = np.r_[10:480, 520:1000]
    assert smooth[away] == pytest.approx(values[away])
