"""Tests of the charts of a page."""

import math

import numpy as np
import pytest

from moebius.observe.charts import Charts, Line, Marks, numbers


def test_numbers_are_short_and_gaps_are_null():
    values = [1.0, 1 / 3, math.nan, math.inf, 1e300, 123456789.0, -0.000012345678]
    assert numbers(values) == [1, 0.333333, None, None, 1e300, 123456789, -1.23457e-05]
    assert numbers(np.array([2.5, np.nan])) == [2.5, None]


def test_lines_refer_to_their_places():
    charts = Charts()
    first = charts.places({"step": [1, 2], "tokens": [10, 20]})
    second = charts.places({"step": np.array([5.0])})
    html = charts.lines(
        "A <title>",
        "a & unit",
        [Line("one", first, [1, 2], low=[0, 1], high=[2, 3]), Line("two", second, [math.nan])],
        [(0.5, "limit")],
        is_wide=True,
    )
    assert "A &lt;title&gt; <span>a &amp; unit</span>" in html and "class=wide" in html
    values = charts.to_json()
    assert values["axes"] == [{"step": [1, 2], "tokens": [10, 20]}, {"step": [5]}]
    (name,) = values["charts"]
    assert f"id={name}" in html
    one, two = values["charts"][name]["series"]
    assert (one["low"], one["y"], one["high"]) == ([0, 1], [1, 2], [2, 3])
    assert (two["axes"], two["y"], "low" in two) == (1, [None], False)
    assert values["charts"][name]["limits"] == [{"value": 0.5, "name": "limit"}]


@pytest.mark.parametrize(
    ("values", "from_zero", "is_logarithmic"),
    [
        ([1, 10], False, False),
        ([1, 30], False, True),
        ([1, 30], True, False),
        ([0, 30], False, False),
        ([-1, 30], False, False),
        ([], False, False),
        ([math.nan], False, False),
    ],
)
def test_values_that_differ_much_get_a_logarithmic_axis(values, from_zero, is_logarithmic):
    charts = Charts()
    charts.lines("title", "", [Line("one", 0, values)], from_zero=from_zero)
    (chart,) = charts.to_json()["charts"].values()
    assert chart["log"] is is_logarithmic


def test_each_chart_has_an_id_of_its_own():
    charts = Charts()
    axes = charts.places({"step": [1]})
    charts.marks("marks", "", ["cv"], [Marks("alarm", axes, [0], ["x"], 1, "circle")], {})
    charts.heat("heat", "", axes, 2, 0.1, "AAAA")
    charts.bars("bars", "ms", ["a"], [("forward", [1.0], 0)], ["100%"], ("floor", [0.5]))
    kinds = [chart["kind"] for chart in charts.to_json()["charts"].values()]
    assert kinds == ["marks", "heat", "bars"]
