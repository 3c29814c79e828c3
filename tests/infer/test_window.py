"""The part of a long text that is read."""

import itertools

import pytest

from moebius.infer.window import window_start


@pytest.mark.parametrize("context", [1, 2, 3, 4, 7, 16])
def test_the_window_fits_into_the_context_and_moves_in_halves(context):
    starts = [window_start(n, context) for n in range(1, 6 * context)]
    for n, start in enumerate(starts, start=1):
        assert (start == 0) if n <= context else (n - context <= start < n)
        assert n - start > context - max(1, context // 2) or start == 0
    assert starts == sorted(starts)
    moves = sum(one != two for one, two in itertools.pairwise(starts))
    assert moves <= 5 * context / max(1, context // 2) + 1


def test_a_full_context_is_read_by_hand():
    assert [window_start(n, 4) for n in range(3, 10)] == [0, 0, 2, 2, 4, 4, 6]
