"""Tests of the number of threads and of what they do while they wait."""

import os
import subprocess
import sys

import pytest
import torch

from moebius.hardware import threads
from moebius.hardware.threads import let_idle_threads_sleep, use_threads


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


@pytest.mark.parametrize("name", threads.WAITING)
def test_idle_threads_sleep_unless_the_user_has_decided(name):
    environment = {"HOME": "/"}
    let_idle_threads_sleep(environment)
    assert environment == {"HOME": "/", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
    decided = {name: "1"}
    let_idle_threads_sleep(decided)
    assert decided == {name: "1"}


def test_a_command_decides_before_it_imports_torch():
    """OpenMP reads the environment when it is loaded, which is with torch."""
    code = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("imported with", os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Finder())
from moebius.cli import main
main(["profile", "tiny", "--seconds", "0.001", "--train.device", "cuda:99"])
"""
    kept = set(os.environ) - set(threads.WAITING)
    environment = {name: os.environ[name] for name in kept}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("imported with 1000\n") and done.returncode == 2
