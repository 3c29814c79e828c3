"""Pieces: whose they are, and that nothing of the time is lost."""

import time

import pytest
import torch

from moebius.profile.timeline import HostClock, Piece, Timeline, passed

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch):
    """A clock that reads one second more each time."""
    seconds = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


def work(x, factor):
    return x * factor


def test_a_call_inside_another_comes_off_its_time(ticking):
    timeline = Timeline(CPU)
    inner = timeline.around("dispatch", work)
    outer = timeline.around("experts", lambda x: inner(x, 2.0) + 1)
    timeline.begin()  # 0 rest, 1 experts, 2 dispatch, 3 experts again, 4 rest
    outer(torch.ones(3))
    assert timeline.end() == {  # at 5
        Piece("everything_else", "forward"): 2.0,
        Piece("experts", "forward"): 2.0,
        Piece("dispatch", "forward"): 1.0,
    }


def test_the_backward_pass_is_marked_where_gradients_pass(ticking):
    timeline = Timeline(CPU)
    first, second = timeline.around("router", work), timeline.around("experts", work)
    x = torch.ones(3, requires_grad=True)
    timeline.begin()
    loss = second(first(x, 2.0), 3.0).sum()
    loss.backward()
    found = timeline.end()
    assert {piece for piece in found if piece.direction == "backward"} == {
        Piece("experts", "backward"),
        Piece("router", "backward"),
        Piece("everything_else", "backward"),
    }
    assert x.grad is not None and x.grad.tolist() == [6.0] * 3


def test_a_whole_component_owns_all_that_it_calls(ticking):
    timeline = Timeline(CPU)
    inner = timeline.around("router", work)
    timeline.begin()
    timeline.around("mtp", lambda x: inner(x, 2.0))(torch.ones(3, requires_grad=True)).sum().backward()
    assert {piece.component for piece in timeline.end()} == {"mtp", "everything_else"}


def test_marks_cost_nothing_and_change_nothing_outside_of_a_step():
    timeline = Timeline(CPU)
    x = torch.ones(3, requires_grad=True)
    assert timeline.around("router", lambda x: x)(x) is x
    passed("router")
    timeline.begin()
    timeline.end()
    assert timeline.around("router", lambda x: x)(x) is x


def test_a_fused_kernel_is_split_evenly(ticking):
    timeline = Timeline(CPU)
    timeline.begin()
    passed("norms", "rotary")
    passed("everything_else")
    found = timeline.end()
    assert found[Piece("norms", "forward")] == found[Piece("rotary", "forward")] == 0.5


def test_a_part_of_an_operator_is_its_own_where_the_operator_is_its_components_alone(ticking):
    timeline = Timeline(CPU)
    gather = timeline.part("dispatch", "expert_gemms", lambda: None)
    timeline.begin()
    passed("expert_gemms")
    gather()  # 2 dispatch, 3 expert_gemms again
    passed("mtp")  # 4
    gather()
    assert timeline.end() == {  # at 5
        Piece("everything_else", "forward"): 1.0,
        Piece("expert_gemms", "forward"): 2.0,
        Piece("dispatch", "forward"): 1.0,
        Piece("mtp", "forward"): 1.0,
    }


def test_the_host_clock_loses_nothing(ticking):
    clock = HostClock()
    clock.start()
    for name in ("a", "b", "a"):
        clock.mark((name,), "forward")
    assert [took for _, _, took in clock.stop()] == [1.0, 1.0, 1.0]


def test_a_step_of_another_timeline_is_not_marked():
    one, other = Timeline(CPU), Timeline(CPU)
    one.begin()
    other.around("router", work)(torch.ones(3), 2.0)
    assert {piece.component for piece in one.end()} == {"everything_else"}
