"""Tests of the components as bars."""

import pytest

from moebius.observe.charts import Charts
from moebius.profile.bars import bars
from tests.profile.made_up import made_up, small_config


@pytest.mark.parametrize("waiting", [0.0, 0.2])
def test_each_component_has_a_bar_with_its_floor(waiting):
    rows = made_up(small_config(), waiting=waiting).rows
    charts = Charts()
    bars(charts, rows)
    (chart,) = charts.to_json()["charts"].values()
    assert chart["names"] == [row.component.replace("_", " ") for row in rows]
    parts = {part["name"]: part["values"] for part in chart["series"]}
    assert list(parts)[2:] == (["waiting for the host"] if waiting else [])
    scale = 1e3 if chart["unit"] == "ms of a step" else 1
    sums = [sum(values) for values in zip(*parts.values(), strict=True)]
    assert sums == pytest.approx([row.seconds * scale for row in rows], rel=1e-4)
    assert chart["floors"] == pytest.approx([row.floor * scale for row in rows], rel=1e-4)


def test_no_rows_are_no_bars():
    charts = Charts()
    bars(charts, [])
    (chart,) = charts.to_json()["charts"].values()
    assert chart["names"] == []
