"""What is written with a step's tags becomes rarer as a run goes on."""

from moebius.observe.tags import Rarer


def test_it_becomes_rarer_and_a_roll_back_starts_again_from_there():
    rarer = Rarer(1 / 10)
    assert [step for step in range(1, 41) if rarer.is_due(step)] == [
        *range(1, 11), 12, 14, 16, 18, 20, 23, 26, 29, 33, 37,
    ]  # fmt: skip
    rarer.rewind(20)
    assert [step for step in range(21, 41) if rarer.is_due(step)] == [23, 26, 29, 33, 37]
