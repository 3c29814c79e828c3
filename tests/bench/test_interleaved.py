"""Tests of contenders that take turns."""

import pytest
import torch

CPU = torch.device("cpu")


def too_large() -> None:
    """Fail as torch does when a GPU's memory is full."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_a_contender_that_fails_says_so_and_the_others_go_on(script):
    contenders = {"fits": lambda: None, "large": too_large}
    times = script("interleaved").functions_in_turns(contenders, CPU, rounds=3)
    assert times["large"].error == "out of memory" and not times["large"].seconds
    assert times["large"].over(times["fits"]) == ""
    assert len(times["fits"].seconds) == 3 and not times["fits"].error


def test_ratios_are_taken_turn_by_turn(script):
    timed = script("interleaved").Timed
    ratio = timed([2.0, 4.0, 9.0]).over(timed([1.0, 2.0, 3.0]))
    assert ratio == "2.00 (2.00 to 3.00)"


def test_the_time_is_the_median_of_the_turns(script):
    assert script("interleaved").Timed([0.002, 0.004, 0.003]).ms == pytest.approx(3.0)


def test_an_error_is_named_in_a_few_words(script):
    error = ValueError("no kernel\n for this " + "x" * 200)
    text = script("interleaved").reason(error)
    assert text.startswith("ValueError: no kernel for this") and len(text) == 120 + 12
