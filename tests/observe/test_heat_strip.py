"""Heat strips: levels, widths, and what stands for several experts."""

import numpy as np
import pytest

from moebius.observe.heat_strip import DEAD, EDGES, EVEN, GLYPHS, levels_of, strip


def test_the_levels_are_those_of_the_report():
    shares = np.array([0.0, 0.2, 0.4, 0.7, 1.0, 1.9, 3.0, 5.0])
    shares = np.append(shares, 16 - shares.sum()) / 16
    padded = np.append(shares, np.zeros(7))
    assert levels_of(padded)[:8].tolist() == [DEAD, 0, 1, 2, EVEN, 4, 5, 6]
    assert len(GLYPHS) == len(EDGES) + 2


@pytest.mark.parametrize(
    ("num_experts", "width", "used"),
    [(1, 10, 3), (4, 50, 12), (20, 50, 40), (50, 50, 50), (64, 59, 59), (512, 7, 7)],
)
def test_a_strip_is_as_wide_as_it_may_be(num_experts, width, used):
    assert strip(np.full(num_experts, 1 / num_experts), width) == [(EVEN, used)]


def test_more_experts_than_characters_are_sorted_and_nothing_dead_is_hidden():
    shares = np.full(512, 1 / 512)
    shares[300] = 0
    assert strip(shares / shares.sum(), 16) == [(DEAD, 1), (EVEN, 15)]
    shares[7] = 3 / 512
    assert strip(shares / shares.sum(), 16) == [(DEAD, 1), (EVEN, 14), (5, 1)]


def test_a_layer_without_tokens_is_dead():
    assert strip(np.zeros(4), 8) == [(DEAD, 8)]
