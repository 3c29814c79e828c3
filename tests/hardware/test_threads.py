"""Tests of the number of threads."""

import pytest
import torch

from moebius.hardware import threads
from moebius.hardware.threads import use_threads


@pytest.fixture
def number(monkeypatch) -> list[int]:
    """The number of torch's threads, of which it starts 4, in a list that `use_threads` sets."""
    numbers = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: numbers.__setitem__(0, count))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return numbers


@pytest.mark.parametrize(
    ("count", "quota", "expected"),
    [(0, 8.0, 4), (0, 2.4, 2), (0, 0.3, 1), (3, 8.0, 3), (6, 2.0, 6)],
)
def test_threads_are_as_many_as_asked_or_as_the_processor_has_time_for(
    monkeypatch, number, count, quota, expected
):
    monkeypatch.setattr(threads, "quota", lambda: quota)
    use_threads(count)
    assert number == [expected]


def test_the_users_own_variable_is_left_alone(monkeypatch, number):
    monkeypatch.setattr(threads, "quota", lambda: 2.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    use_threads(0)
    assert number == [4]
    use_threads(1)
    assert number == [1]
