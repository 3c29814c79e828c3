"""What is remembered of a run, and what is forgotten."""

import math

from moebius.observe.so_far import MOST_POINTS, MOST_SUMMED, SoFar, add_line
from tests.observe.made_up_view import step_of


def test_memory_is_bounded():
    so_far = SoFar("run", 10**6)
    for step in range(3 * MOST_POINTS):
        so_far.add(step_of(step, 3.0, [[1] * 40]))
        so_far.happen("something")
    assert len(so_far.points) == MOST_POINTS and len(so_far.happenings) <= MOST_POINTS
    counts, num_steps = so_far.loads.summed()
    assert num_steps == 25 and counts[0].tolist() == [25] * 40  # as many as alarms need
    assert len(so_far.loads._arrays) == MOST_SUMMED


def test_a_step_with_enough_tokens_stands_for_itself():
    so_far = SoFar()
    for step in (1, 2):
        so_far.add(step_of(step, 3.0, [[100 * step] * 4, [], [50] * 2]))
    counts, num_steps = so_far.loads.summed()
    assert num_steps == 1 and {n: c.tolist() for n, c in counts.items()} == {
        0: [200] * 4, 2: [50, 50]}  # fmt: skip


def test_a_roll_back_forgets_later_steps():
    so_far = SoFar()
    for step in range(1, 11):
        so_far.add(step_of(step, float(step), [[step] * 4], 9.0 - step if step % 4 == 0 else None))
    so_far.happen("step 10: alarm: x", "alarm")
    so_far.rewind(5)
    assert so_far.step == 5 and so_far.points[-1].step == 5 and so_far.latest is None
    assert so_far.held_out and so_far.held_out.step == 4 and len(so_far.happenings) == 1
    so_far.rewind(3)
    assert so_far.held_out is None
    assert so_far.loads.summed()[0][0].tolist() == [6] * 4
    so_far.forget()
    assert not so_far.points and so_far.loads.summed() == ({}, 0) and so_far.happenings


def test_lines_of_a_file():
    so_far = SoFar()
    add_line(so_far, {"step": 3, "loss": None, "val_loss": None, "val_bpb": None})
    assert math.isnan(so_far.points[0].loss) and so_far.held_out is not None
    assert so_far.step == 3 and math.isnan(so_far.held_out.loss)


def test_another_number_of_experts_is_not_added_up():
    so_far = SoFar()
    so_far.add(step_of(1, 3.0, [[1] * 3]))
    so_far.add(step_of(2, 3.0, [[1] * 5]))
    assert so_far.loads.summed()[0][0].tolist() == [1] * 5
