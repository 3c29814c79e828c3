"""Balance figures against hand calculation."""

import math

import pytest
import torch

from moebius.model.statistics import LayerStats
from moebius.observe.balance import NOTHING, dead_experts, layer_figures, max_violation, variation


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5, 5], 0.0),
        ([7], 0.0),
        ([10, 0, 0, 0], math.sqrt(3)),  # all on one of E: sqrt(E - 1)
        ([1, 3], 0.5),  # mean 2, deviations of 1
        ([2, 4, 6], math.sqrt(8 / 3) / 4),
        ([], 0.0),  # a layer without experts
        ([0, 0], 0.0),  # no token took any expert
    ],
)
def test_variation_by_hand(counts, expected):
    assert variation(counts) == pytest.approx(expected, abs=1e-12)


def test_the_founding_documents_collapse():
    # the document prints 0.73, the sample's deviation (n - 1) over the mean; here it is the population's
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
        ([0, 0, 0], 3),  # no tokens at all: every expert is dead
        ([], 0),
    ],
)
def test_dead_experts_by_hand(counts, expected):
    assert dead_experts(counts) == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5, 5], 0.0),
        ([10, 0, 0, 0], 3.0),  # all on one of E: E - 1
        ([2, 4, 6], 0.5),
        ([326, 581, 94], 3 * 581 / 1001 - 1),
        ([7], 0.0),
        ([], 0.0),
        ([0, 0], 0.0),
    ],
)
def test_max_violation_by_hand(counts, expected):
    assert max_violation(counts) == pytest.approx(expected, abs=1e-12)


def stats(taken: list[float], chosen: list[list[float]], **figures: float) -> LayerStats:
    """12 tokens of a layer with three experts, as far as the figures do not say otherwise."""
    own = {"squared_log_partition": 1.0, "entropy": 6.0, "gate": 5.0, "unrouted": 0.0, "dropped": 0.0, "not_finite": 0.0}
    values = {name: torch.tensor(value) for name, value in (own | {"tokens": 12.0} | figures).items()}
    chosen_PE = torch.tensor(chosen)
    return LayerStats(torch.tensor(taken), chosen_PE, torch.zeros_like(chosen_PE), **values)


def test_a_layers_figures_by_hand():
    # two groups chose 6 + 6; the busy expert took two tokens fewer than chose it
    found = layer_figures(stats([2.0, 6.0, 2.0], [[1.0, 4.0, 1.0], [1.0, 4.0, 1.0]], dropped=2.0, unrouted=2.0, not_finite=3.0))
    assert found == {
        "tokens_per_expert": [2, 6, 2],
        "cv": pytest.approx(math.sqrt((2 * (4 / 3) ** 2 + (8 / 3) ** 2) / 3) / (10 / 3)),
        "max_violation": pytest.approx(0.8),
        "dead_experts": 0,
        "routing_entropy": 0.5,
        "mean_gate": 0.5,
        "dropped_share": pytest.approx(2 / 12),
        "unrouted_share": pytest.approx(2 / 12),
        "not_finite_logits": 3,
    }
    assert all(isinstance(count, int) for count in [*found["tokens_per_expert"], found["not_finite_logits"]])
    assert found.keys() == NOTHING.keys()


def test_shares_are_of_what_was_asked_for():
    # top-2: 24 assignments of 12 tokens, of which 6 were refused and 3 tokens went without
    found = layer_figures(stats([6.0, 6.0, 6.0], [[8.0, 10.0, 6.0]], dropped=6.0, unrouted=3.0, gate=9.0))
    assert (found["dropped_share"], found["unrouted_share"], found["mean_gate"]) == (0.25, 0.25, 0.5)


def test_a_layer_whose_experts_took_nothing():
    found = layer_figures(stats([0.0] * 3, [[0.0] * 3], gate=0.0, unrouted=12.0))
    assert found["mean_gate"] is None and found["unrouted_share"] == 1.0 and found["dropped_share"] == 0.0
    assert found["cv"] == found["max_violation"] == 0.0 and found["dead_experts"] == 3


def test_logits_that_are_not_numbers_leave_counts_that_are():
    found = layer_figures(stats([4.0, 4.0, 4.0], [[4.0, 4.0, 4.0]], entropy=math.nan, gate=math.nan, not_finite=36.0))
    assert math.isnan(found["routing_entropy"]) and math.isnan(found["mean_gate"])
    assert found["not_finite_logits"] == 36 and found["tokens_per_expert"] == [4, 4, 4]
