"""Tests of the chart of a profile."""

import pytest

from moebius.profile.chart import chart
from tests.profile.made_up import made_up, small_config


@pytest.mark.parametrize("waiting", [0.0, 0.1])
def test_the_chart_is_a_png(tmp_path, waiting):
    chart(made_up(small_config(), waiting=waiting), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
