"""Permutations take no memory, and mixtures are exact at every sequence."""

import numpy as np
import pytest

from moebius.data.order import LONGEST_PERIOD, Mixture, shuffled

WEIGHTS = [
    (1.0,),
    (0.7, 0.2, 0.1),
    (1, 1, 1),
    (1, 2, 3, 0, 5),
    (0.97, 0.01, 0.01, 0.01),
    (1e-6, 1.0),
    (0.123456789, 0.3, 0.333333333),
    tuple(1 / n for n in range(1, 30)),
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_source_has_its_share_to_within_one_sequence_at_any_time(weights):
    mixture = Mixture(weights)
    length = 200_000
    sources, numbers = mixture.locate(np.arange(length))
    is_rounded = mixture.period > LONGEST_PERIOD // 2
    for source, weight in enumerate(weights):
        taken = np.cumsum(sources == source)
        expected = np.arange(1, length + 1) * (weight / sum(weights))
        rounding = is_rounded * len(weights) * length / LONGEST_PERIOD
        assert np.abs(taken - expected).max() < 1 + 1e-6 + rounding
        assert (numbers[sources == source] == np.arange(taken[-1])).all()


def by_looking_at_every_source(turns: list[int]) -> list[int]:
    """Return the source of each sequence of a period: the readable reference of `Mixture`."""
    period, taken, order = sum(turns), [0] * len(turns), []
    for position in range(period):
        ready = [
            source
            for source, count in enumerate(turns)
            if count and taken[source] * period // count <= position
        ]
        order.append(min(ready, key=lambda n: -(-(taken[n] + 1) * period // turns[n])))
        taken[order[-1]] += 1
    return order


def test_a_mixture_is_the_same_as_by_looking_at_every_source():
    generator = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 30):
        for _ in range(10):
            turns = generator.integers(0, 12, size).tolist()
            turns[0] = 1  # nothing divides all of them
            sources, _ = Mixture(turns).locate(np.arange(sum(turns)))
            assert sources.tolist() == by_looking_at_every_source(turns)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sequences_can_be_located_in_any_order(weights):
    mixture = Mixture(weights)
    sources, numbers = mixture.locate(np.arange(1000))
    for start in (0, 1, 7, 500, 993):
        later = mixture.locate(np.arange(start, start + 7))
        assert (later[0] == sources[start : start + 7]).all()
        assert (later[1] == numbers[start : start + 7]).all()
    far, number = mixture.locate(np.array([10**12 * mixture.period]))
    assert far == sources[0]
    assert number == 10**12 * np.bincount(mixture.locate(np.arange(mixture.period))[0])[far]


@pytest.mark.parametrize("weights", [(1,), (2, 1), (0.3, 0.0, 0.7), (5, 3, 1, 1)])
def test_the_turns_before_a_sequence_are_those_of_the_sequences_before_it(weights):
    mixture = Mixture(weights)
    sources, _ = mixture.locate(np.arange(60))
    for sequence in (0, 1, 2, 7, 10, 59, 60):
        counts = np.bincount(sources[:sequence], minlength=len(weights))
        assert mixture.turns_before(sequence).tolist() == counts.tolist()


def test_a_source_without_weight_is_never_read_and_a_tiny_one_is():
    assert set(Mixture((1, 0, 3)).locate(np.arange(1000))[0].tolist()) == {0, 2}
    assert set(Mixture((1, 1e-9)).locate(np.arange(2 * LONGEST_PERIOD))[0].tolist()) == {0, 1}


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 65_537])
def test_shuffled_is_a_permutation(size):
    order = shuffled(np.arange(size), size, key=(3, 1, 0))
    assert order.dtype == np.int64
    assert (np.sort(order) == np.arange(size)).all()


def test_a_position_has_the_same_image_alone_as_among_all():
    order = shuffled(np.arange(777), 777, key=(5, 0, 0))
    images = [int(shuffled(np.array([n]), 777, key=(5, 0, 0))[0]) for n in range(777)]
    assert images == order.tolist()
    assert (order != shuffled(np.arange(777), 777, key=(5, 1, 0))).any()
    assert (order != shuffled(np.arange(777), 777, key=(6, 0, 0))).any()


def test_a_corpus_of_any_size_takes_no_memory():
    assert 0 <= shuffled(np.array([10**15]), 10**16, key=(0, 0, 0))[0] < 10**16


@pytest.mark.parametrize("size", [4, 7, 10, 64])
def test_all_images_are_equally_likely_and_neighbors_are_separated(size):
    num_keys = 4000
    orders = np.stack(
        [shuffled(np.arange(size), size, key=(seed, 0, 0)) for seed in range(num_keys)]
    )
    expected = num_keys / size
    for position in range(size):
        counts = np.bincount(orders[:, position], minlength=size)
        chi_square = ((counts - expected) ** 2).sum() / expected  # its mean is size - 1
        assert chi_square < 2 * size + 40
    follows = (np.diff(orders, axis=1) == 1).mean()
    assert abs(follows - 1 / size) < 0.3 / size
