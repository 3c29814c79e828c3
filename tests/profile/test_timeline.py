"""Tests that every piece of a step belongs to the right component, and that no time is lost."""

import time

import pytest
import torch

from moebius.profile.timeline import Piece, Timeline, passed

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch):
    """A clock that advances by one second each time it is read."""
    seconds = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


def work(x, factor):
    return x * factor


def test_a_call_inside_another_comes_off_its_time(ticking):
    timeline = Timeline(CPU)
    inner = timeline.around("dispatch", work)
    outer = timeline.around("experts", lambda x: inner(x, 2.0) + 1)
    timeline.begin()  # rest at 0, experts at 1, dispatch at 2, experts at 3, rest at 4
    outer(torch.ones(3))
    assert timeline.end() == {  # at 5
        Piece("everything_else", "forward"): 2.0,
        Piece("experts", "forward"): 2.0,
        Piece("dispatch", "forward"): 1.0,
    }


def test_the_backward_pass_is_marked_where_gradients_are_known(ticking):
    timeline = Timeline(CPU)
    first, second = timeline.around("router", work), timeline.around("experts", work)
    x = torch.ones(3, requires_grad=True)
    timeline.begin()
    loss = second(first(x, 2.0), 3.0).sum()
    loss.backward()
    pieces = timeline.end()
    assert {piece for piece in pieces if piece.direction == "backward"} == {
        Piece("experts", "backward"),
        Piece("router", "backward"),
        Piece("everything_else", "backward"),
    }
    assert x.grad is not None and x.grad.tolist() == [6.0] * 3


def test_a_whole_component_owns_all_that_it_calls(ticking):
    timeline = Timeline(CPU)
    inner = timeline.around("router", work)
    outer = timeline.around("mtp", lambda x: inner(x, 2.0))
    timeline.begin()
    outer(torch.ones(3, requires_grad=True)).sum().backward()
    assert {piece.component for piece in timeline.end()} == {"mtp", "everything_else"}


def test_marks_change_nothing_outside_of_a_step():
    timeline = Timeline(CPU)
    x = torch.ones(3, requires_grad=True)
    assert timeline.around("router", lambda x: x)(x) is x
    passed("router")
    timeline.begin()
    timeline.end()
    assert timeline.around("router", lambda x: x)(x) is x


def test_the_time_of_a_fused_kernel_is_split_evenly(ticking):
    timeline = Timeline(CPU)
    timeline.begin()
    passed("norms", "rotary")
    passed("everything_else")
    pieces = timeline.end()
    assert pieces[Piece("norms", "forward")] == pieces[Piece("rotary", "forward")] == 0.5


def test_a_part_of_an_operator_is_marked_only_where_one_component_owns_the_operator(ticking):
    timeline = Timeline(CPU)
    gather = timeline.part("dispatch", "expert_gemms", lambda: None)
    timeline.begin()
    passed("expert_gemms")
    gather()  # dispatch at 2, expert_gemms again at 3
    passed("mtp")  # at 4
    gather()
    assert timeline.end() == {  # at 5
        Piece("everything_else", "forward"): 1.0,
        Piece("expert_gemms", "forward"): 2.0,
        Piece("dispatch", "forward"): 1.0,
        Piece("mtp", "forward"): 1.0,
    }


def test_another_timelines_calls_are_not_marked():
    running, idle = Timeline(CPU), Timeline(CPU)
    running.begin()
    idle.around("router", work)(torch.ones(3), 2.0)
    assert {piece.component for piece in running.end()} == {"everything_else"}
