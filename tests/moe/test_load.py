"""Figures of the experts' load, compared with calculations by hand."""

import math

import pytest

from moebius.moe.load import dead_experts, max_violation, variation


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5, 5], 0.0),
        ([7], 0.0),
        ([10, 0, 0, 0], math.sqrt(3)),  # all tokens on one of E experts: sqrt(E - 1)
        ([1, 3], 0.5),  # the mean is 2, the deviations are 1
        ([2, 4, 6], math.sqrt(8 / 3) / 4),
        ([], 0.0),  # a layer without experts
        ([0, 0], 0.0),  # no token took any expert
    ],
)
def test_variation_by_hand(counts, expected):
    assert variation(counts) == pytest.approx(expected, abs=1e-12)


def test_the_founding_documents_collapse():
    # The document prints 0.73, the sample's standard deviation (n - 1) over the mean. Ours is the
    # population's.
    counts = [326, 581, 94]
    assert variation(counts) == pytest.approx(0.596, abs=1e-3)
    assert variation(counts) * math.sqrt(3 / 2) == pytest.approx(0.73, abs=1e-3)
    assert dead_experts(counts) == 0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([50, 50], 0),
        ([99, 1], 0),  # 1% is alive
        ([991, 9], 1),
        ([100, 0, 0], 2),
        ([0, 0, 0], 3),  # without any token every expert is dead
        ([], 0),
    ],
)
def test_dead_experts_by_hand(counts, expected):
    assert dead_experts(counts) == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5, 5], 0.0),
        ([10, 0, 0, 0], 3.0),  # all tokens on one of E experts: E - 1
        ([2, 4, 6], 0.5),
        ([326, 581, 94], 3 * 581 / 1001 - 1),
        ([7], 0.0),
        ([], 0.0),
        ([0, 0], 0.0),
    ],
)
def test_max_violation_by_hand(counts, expected):
    assert max_violation(counts) == pytest.approx(expected, abs=1e-12)
