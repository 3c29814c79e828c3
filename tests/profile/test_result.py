"""Tests of the rows of a profile."""

import pytest

from moebius.profile.measure import Measured
from moebius.profile.result import rows_of
from moebius.profile.timeline import Piece
from moebius.profile.usage import GpuUsage
from tests.profile.made_up import LIMITS, TIMES, made_up, small_config


def test_the_rows_add_up_and_the_longest_comes_first():
    profile = made_up(small_config("--model.base_expansion=1"))
    assert sum(row.share for row in profile.rows) == pytest.approx(1, abs=0.01)
    seconds = [row.seconds for row in profile.rows]
    assert seconds == sorted(seconds, reverse=True)


def test_efficiency_is_the_floor_over_the_measured_time():
    rows = made_up(small_config("--model.base_expansion=1")).rows
    assert all(row.efficiency == pytest.approx(1 / TIMES) for row in rows if row.floor)


def test_a_component_without_an_expectation_has_no_floor_and_a_tiny_one_no_row():
    pieces = {
        Piece("data", "forward"): 0.5,
        Piece("data", "waiting"): 0.25,
        Piece("embedding", "forward"): 0.0005,
    }
    (row,) = rows_of({}, Measured([1.0], pieces, 1.0, [], GpuUsage()), LIMITS)
    assert (row.component, row.forward, row.backward, row.waiting) == ("data", 0.5, 0.0, 0.25)
    assert (row.floor, row.efficiency, row.parameters) == (0.0, 0.0, 0)
    assert row.share == row.seconds == 0.75


def test_speed_and_utilization_come_from_the_median_round():
    profile = made_up(small_config())
    tokens = 256 * 128
    assert profile.tokens_per_second == pytest.approx(tokens / profile.measured.rounds[0])
    # Every component takes four times its floor, and components that only move bytes have no
    # FLOPs.
    assert 0 < profile.mfu < 1 / TIMES
    flops = sum(row.flops for row in profile.rows)
    assert profile.mfu == pytest.approx(flops / profile.measured.seconds / LIMITS.flops, rel=1e-3)
