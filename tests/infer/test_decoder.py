"""The random numbers of a text."""

from moebius.infer.decoder import Writing


def test_random_numbers_depend_on_the_seed_alone_and_stay_below_1():
    one, same, other = (Writing([0], seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert one.uniform(3) + one.uniform(2) == same.uniform(5) != other.uniform(5)
    many = one.uniform(20_000)
    assert min(many) >= 0 and max(many) <= 1 - 2**-32
    assert abs(sum(many) / len(many) - 0.5) < 0.01
