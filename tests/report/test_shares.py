"""Tests of the shares of experts."""

import base64

import numpy as np
import pytest

from moebius.report.shares import SCALE, Shares


def test_the_shares_of_each_layer():
    shares = Shares(1_000)
    shares.add(10, [[1, 3], [], [2, 2, 4]])
    shares.add(20, [[0, 0], [], [9, 0, 0]])
    assert shares.steps.tolist() == [10, 20]
    assert shares.experts == [2, 0, 3]
    assert shares.of_layer(0).tolist() == [[0.25, 0.75], [0, 0]]
    assert shares.of_layer(2).tolist() == [[0.25, 0.25, 0.5], [1, 0, 0]]


def test_cells_are_integers_of_two_bytes():
    shares = Shares(1_000)
    shares.add(1, [[1, 3]])
    shares.add(2, [[4, 0]])
    cells = np.frombuffer(base64.b64decode(shares.cells(0)), "<u2")
    assert cells.tolist() == [round(SCALE / 4), round(3 * SCALE / 4), SCALE, 0]


def test_a_long_run_has_few_columns_in_which_each_token_counts_the_same():
    shares = Shares(2 * 12 * 2)
    for step in range(1, 1_001):
        shares.add(step, [[step, 1_000]])
    columns = len(shares.steps)
    assert 12 <= columns < 24
    assert shares.steps[-1] == 1_000
    size = int(shares.steps[0])
    assert shares.of_layer(0)[0, 0] == pytest.approx(
        sum(range(1, size + 1)) / (sum(range(1, size + 1)) + 1_000 * size)
    )


@pytest.mark.parametrize(
    "counts",
    [None, 3, "ab", [3], [["a", "b"]], [[1, 2], [3]], [[1, -2]], [[1, 2, 3]], [[1, None]]],
)
def test_counts_that_are_not_those_of_the_model_are_passed_over(counts):
    shares = Shares(1_000)
    shares.add(1, [[1, 1]])
    shares.add(2, counts)
    shares.add(3, [[0, 1]])
    assert shares.num_damaged == 1
    assert shares.steps.tolist() == [1, 3]


def test_a_dense_model_has_no_shares():
    shares = Shares(1_000)
    shares.add(1, [[], []])
    shares.add_line({"step": 2})
    assert not len(shares.steps) and not shares.experts and not shares.num_damaged
