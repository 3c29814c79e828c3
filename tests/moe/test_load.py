"""Figures of the experts' load, compared with calculations by hand."""

import math

import pytest

from moebius.moe.load import dead_experts, dead_share, is_enough, max_violation, variation


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


@pytest.mark.parametrize("num_experts", [1, 2, 3, 9, 10, 11, 64, 100, 128, 512, 4_096])
@pytest.mark.parametrize("each", [1, 7, 10, 1_024])
def test_no_expert_is_dead_under_an_even_load(num_experts, each):
    assert dead_experts([each] * num_experts) == 0


@pytest.mark.parametrize(
    ("num_experts", "fewest", "total"),
    [
        # 1% is the smaller of the two up to 10 experts, and a tenth of the even share from there.
        (2, 10, 1_000),
        (9, 10, 1_000),
        (10, 10, 1_000),
        (11, 100, 11_000),
        (64, 7, 4_480),
        (128, 1, 1_280),
        (512, 3, 15_360),
    ],
)
def test_the_smallest_healthy_load_by_hand(num_experts, fewest, total):
    """The last expert has `fewest` of the `total` tokens, or one token less."""
    for count, expected in ((fewest, 0), (fewest - 1, 1)):
        rest, left = divmod(total - count, num_experts - 1)
        counts = [rest + (expert < left) for expert in range(num_experts - 1)] + [count]
        assert sum(counts) == total and dead_experts(counts) == expected


def test_a_configured_share_can_only_make_a_dead_expert_rarer():
    assert dead_share(4, 0.02) == 0.02
    assert dead_share(4, 0.05) == 1 / 40  # a tenth of the even share
    assert dead_share(512, 0.05) == dead_share(512) == 1 / 5_120
    assert dead_share(512, 1e-5) == 1e-5


def test_enough_tokens_are_25_for_each_expert():
    assert is_enough([100, 0, 0, 0]) and not is_enough([99, 0, 0, 0])
    assert is_enough([25]) and not is_enough([4] * 512)


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
