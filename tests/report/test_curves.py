"""Tests of the curves that metrics.jsonl holds."""

import json
import math
from typing import Any

import numpy as np
import pytest

from moebius.report.curves import column, number, read_curves
from moebius.report.shares import Shares
from tests.report.made_up_run import TOKENS, even, falling, metrics_line, metrics_lines


def curves_of(lines: list[Any], most_values: int = 10_000) -> Any:
    """Return the curves of some lines."""
    return read_curves(lines, Shares(1_000), most_values)


def test_the_places_of_points():
    curves = curves_of(metrics_lines([2, 4, 8]))
    places = curves.places(curves.model_points)
    assert places["step"].tolist() == [2, 4, 8]
    assert places["tokens"].tolist() == [2 * TOKENS, 4 * TOKENS, 8 * TOKENS]
    assert places["seconds"].tolist() == [4, 8, 16]  # at 500 tokens per second
    assert curves.seconds == 16
    assert curves.places_at([3, 8, 99])["seconds"].tolist() == [6, 16, 16]


def test_the_loss_and_the_evaluations():
    curves = curves_of(metrics_lines(range(1, 11), evaluated=lambda step: step / 2))
    assert curves.figure("loss")[0].tolist() == [falling(step) for step in range(1, 11)]
    assert curves.evaluated("val_loss").tolist() == [2.5, 5.0]
    assert curves.places(curves.evaluations)["step"].tolist() == [5, 10]


def test_a_dense_layer_has_no_figures():
    curves = curves_of(metrics_lines([1, 2]))
    cv = curves.of_layers("cv")
    assert cv.shape == (2, 3)
    assert np.isnan(cv[:, 1]).all() and (cv[:, [0, 2]] == 0).all()


def test_a_model_without_layers_has_no_curves_of_layers():
    lines = [metrics_line(1, 3.0, [])]
    assert curves_of(lines).layer_points is None


def test_a_loss_that_is_not_finite_is_a_gap():
    losses = {1: 3.0, 2: None, 3: 2.0}
    curves = curves_of(metrics_lines([1, 2, 3], loss=losses.get))
    assert curves.figure("loss")[0] == pytest.approx([3, math.nan, 2], nan_ok=True)


def test_damaged_lines_are_counted_and_passed_over():
    lines = metrics_lines([1, 2, 3])
    odd = {"step": 4, "loss": "high", "cv": "none", "tokens": 10**400, "tokens_per_second": [1]}
    later = [{"step": 5}, lines[0], None, odd]  # no loss, an earlier step, no line, odd values
    curves = curves_of([*lines, *later])
    assert curves.num_damaged == 3 and curves.num_lines == 4
    assert math.isnan(curves.figure("loss")[0][-1])
    assert curves.places(curves.model_points)["tokens"][-1] == 3 * TOKENS


def test_a_layer_list_of_another_length_is_missing():
    lines = metrics_lines([1, 2])
    lines[1]["cv"] = [0.5]
    cv = curves_of(lines).of_layers("cv")
    assert np.isnan(cv[1]).all() and cv[0, 0] == 0


def test_a_long_run_is_thinned_out():
    lines = [metrics_line(step, falling(step), even(step)) for step in range(1, 3_001)]
    curves = curves_of(lines, most_values=3 * 5 * 50)
    assert 500 <= len(curves.model_points) < 1_000
    assert 50 <= len(curves.layer_points) < 100
    assert curves.num_lines == 3_000 and curves.last_step == 3_000
    assert curves.places(curves.model_points)["step"][-1] == 3_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (None, None), ("1", None), (True, None), (10**400, None), ([], None)],
)
def test_numbers(value, expected):
    assert number(value) == expected or (expected is None and math.isnan(number(value)))


@pytest.mark.parametrize("text", ["[1, null, 2.5]", "[]", "3", '["a"]', "[[1]]", "null"])
def test_columns(text):
    values = json.loads(text)
    is_list = isinstance(values, list) and all(not isinstance(v, str | list) for v in values)
    expected = [math.nan if v is None else v for v in values] if is_list else []
    assert column(values) == pytest.approx(np.array(expected, float), nan_ok=True)
