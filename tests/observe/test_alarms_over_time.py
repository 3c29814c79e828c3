"""When a rule fires, fires again and is over: window, patience, and a run that is resumed."""

import json
import math
from dataclasses import replace

import pytest

from moebius.config.observe import ObserveConfig, Rule
from moebius.observe.alarms import Alarms
from moebius.observe.metrics import StepMetrics
from tests.observe.made_up import metrics_of
from tests.observe.rules import on_cv, steps_fired_at, watching, with_cv


@pytest.mark.parametrize("patience", [0, 1, 3, 10])
def test_patience_is_counted_from_the_last_harmless_step(patience):
    rule = Rule(threshold=0.3, patience=patience)
    course = [(step, 0.9 if step > 4 else 0.1) for step in range(1, 40)]
    # Without patience, the rule fires as soon as it sees the figure.
    assert steps_fired_at(rule, course)[0] == max(5, 4 + patience)


@pytest.mark.parametrize("log_every", [1, 3, 7, 20, 50, 60])
@pytest.mark.parametrize("patience", [1, 20, 50])
@pytest.mark.parametrize("onset", [1, 61, 100])
def test_an_alarm_is_at_most_a_log_step_late(log_every, patience, onset):
    """`onset` is the first step whose figure is beyond the threshold."""
    steps = range(log_every, 1000, log_every)
    last_harmless = max((step for step in steps if step < onset), default=0)
    course = [(step, 0.9 if step >= onset else 0.1) for step in steps]
    fired_at = steps_fired_at(Rule(threshold=0.3, patience=patience), course)
    due = math.ceil((last_harmless + patience) / log_every) * log_every
    first = max(due, last_harmless + log_every)
    patience_in_log_steps = math.ceil(patience / log_every) * log_every
    assert fired_at == list(range(first, 1000, patience_in_log_steps))


def test_a_harmless_figure_starts_the_patience_anew():
    rule = Rule(threshold=0.3, patience=5)
    always_in_time = [(step, 0.1 if step % 5 == 0 else 0.9) for step in range(1, 60)]
    assert steps_fired_at(rule, always_in_time) == []
    once = [(step, 0.1 if step == 4 else 0.9) for step in range(1, 12)]
    assert steps_fired_at(rule, once) == [9]


def test_the_mean_is_over_the_logged_steps_inside_the_window():
    rule = Rule(threshold=0.3, window=4, patience=0)
    # The mean of steps 1 to 4 is 0.25, and that of steps 2 to 5 is 0.5.
    alarms = on_cv(rule, [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0), (5, 1.0)])
    assert [(alarm.step, alarm.value) for alarm in alarms] == [(5, 0.5)]
    # Three of the five steps up to step 9 are logged.
    (alarm,) = on_cv(replace(rule, window=5), [(4, 0.0), (5, 0.3), (8, 0.2), (9, 1.0)])
    assert alarm.value == pytest.approx(0.5)
    # Steps that are further apart than the window are judged one by one.
    alarms = on_cv(rule, [(10, 0.9), (20, 0.1), (30, 0.8)])
    assert [alarm.value for alarm in alarms if not alarm.over] == [0.9, 0.8]


def test_a_single_bad_step_inside_a_window_is_no_alarm():
    rule = Rule(threshold=0.3, window=20, patience=0)
    course = [(step, 2.0 if step == 50 else 0.15) for step in range(1, 101)]
    assert on_cv(rule, course) == []
    assert on_cv(replace(rule, window=1), course)


def test_it_is_over_after_a_patience_of_harmless_figures():
    rule = Rule(threshold=0.3, patience=4)
    course = [(step, 0.9 if 3 < step <= 12 else 0.1) for step in range(1, 60)]
    alarms = on_cv(rule, course)
    assert [(alarm.step, alarm.since, alarm.over) for alarm in alarms] == [
        (7, 3, False),
        (11, 7, False),
        (16, 12, True),
    ]
    assert [alarm.figures["cv"] for alarm in alarms] == [0.9, 0.9, 0.1]
    assert all(alarm.figures == alarms[0].figures | {"cv": alarm.value} for alarm in alarms)


def test_a_figure_that_never_fired_is_never_over():
    course = [(step, 0.9 if step in (3, 4, 9) else 0.1) for step in range(1, 60)]
    assert on_cv(Rule(threshold=0.3, patience=4), course) == []


def test_a_relapse_puts_the_end_off():
    rule = Rule(threshold=0.3, patience=4)
    course = [(step, 0.9 if step <= 4 or step == 7 else 0.1) for step in range(1, 20)]
    assert [(alarm.step, alarm.over) for alarm in on_cv(rule, course)] == [(4, False), (11, True)]


def test_a_figure_that_is_still_watched_is_over_again_and_again():
    alarms = watching(cv=Rule(threshold=0.3, patience=3))
    events = []
    for step in range(1, 20):
        for alarm in alarms.look(with_cv(step, 0.9 if step <= 3 else 0.1)):
            events.append((alarm.step, alarm.over))
            if alarm.over and len(events) < 4:
                alarms.keep_watching(alarm)
    assert events == [(3, False), (6, True), (9, True), (12, True)]


def test_experts_are_watched_one_by_one():
    alarms = watching(dead_expert=Rule(threshold=0.01, patience=3))
    events = []
    for step in range(1, 12):
        counts = [0 if step <= 4 else 80, 80, 0 if 2 < step <= 6 else 80]
        metrics = metrics_of(step=step, tokens_per_expert=[counts, [], [40, 40, 40]])
        events += [(alarm.step, *alarm.experts, alarm.over) for alarm in alarms.look(metrics)]
    assert events == [(3, 0, False), (5, 2, False), (7, 0, True), (9, 2, True)]


def test_experts_that_die_at_the_same_step_share_an_alarm_and_those_that_recover_do_too():
    alarms = watching(dead_expert=Rule(threshold=0.01, patience=3))
    found = []
    for step in range(1, 12):
        counts = [0 if step <= 4 else 90, 150, 1 if step <= 5 else 90, 150, 2 if step <= 4 else 90]
        metrics = metrics_of(step=step, tokens_per_expert=[counts, [], [40, 40, 40]])
        found += alarms.look(metrics)
    events = [(alarm.step, alarm.experts, alarm.over, alarm.remaining) for alarm in found]
    # The worst expert comes first; 2 of 303 tokens, or 0.7%, are too few, too.
    assert events == [(3, (0, 2, 4), False, 0), (7, (0, 4), True, 1), (8, (2,), True, 0)]
    assert found[0].value == 0.0 and found[0].since == 0
    assert str(found[0]) == (
        "step 3: alarm: layer 0, experts 0, 2, 4: share of the layer's load as low as 0%, "
        "below 1% since step 0"
    )


def test_the_state_of_a_version_with_an_entry_for_each_expert_is_read():
    rules = {"dead_expert": Rule(threshold=0.01, window=4, patience=2)}
    counts = [[0, 40, 40], [], [40, 40, 40]]
    own, other = watching(**rules), watching(**rules)
    for step in range(1, 4):
        own.look(metrics_of(step=step, tokens_per_expert=counts))
    state = own.state()
    assert state["beyond_at"] == [["dead_expert", 0, [3, -1, -1]]]
    old = {
        "seen": [
            [rule, layer, expert, [[step, values[expert]] for step, values in seen]]
            for rule, layer, seen in state["seen"]
            for expert in range(3)
        ],
        "fine_at": [
            [rule, layer, expert, at]
            for rule, layer, steps in state["fine_at"]
            for expert, at in enumerate(steps)
        ],
        "beyond_at": [["dead_expert", 0, 0, 3]],
    }
    other.load(old)
    assert other.state() == state
    step = metrics_of(step=4, tokens_per_expert=counts)
    assert other.look(step) == own.look(step) != []


def eventful_step(step: int) -> StepMetrics:
    """Return a step of a run whose CV rises and falls, with a dead expert and two loss spikes."""
    is_dead, is_spike, is_uneven = 5 < step < 16, step in (11, 31), step % 12 < 8
    return metrics_of(
        step=step,
        loss=5.0 / step**0.5 * (2 if is_spike else 1),
        cv=[0.9 if is_uneven else 0.1, 0.0, 0.25],
        tokens_per_expert=[[0 if is_dead else 40, 40, 40], [], [40, 40, 40]],
    )


@pytest.mark.parametrize("stopped_at", [4, 6, 7, 11, 13, 18, 19])
@pytest.mark.parametrize("window", [1, 6])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(stopped_at, window):
    def new_alarms() -> Alarms:
        return watching(
            cv=Rule(threshold=0.3, window=window, patience=4),
            dead_expert=Rule(threshold=0.01, window=window, patience=5),
            loss_spike=Rule(threshold=1.5, window=20, patience=0),
        )

    steps = range(1, 60, 2)
    uninterrupted = new_alarms()
    expected = [alarm for step in steps for alarm in uninterrupted.look(eventful_step(step))]
    assert {alarm.over for alarm in expected} == {True, False} and len(expected) > 6
    assert {alarm.rule for alarm in expected} == {"cv", "dead_expert", "loss_spike"}

    before, after = new_alarms(), new_alarms()
    alarms = [
        alarm for step in steps if step <= stopped_at for alarm in before.look(eventful_step(step))
    ]
    after.load(json.loads(json.dumps(before.state())))
    assert after.state() == before.state()
    alarms += [
        alarm for step in steps if step > stopped_at for alarm in after.look(eventful_step(step))
    ]
    assert alarms == expected
    assert after.state() == uninterrupted.state()


def test_what_is_remembered_does_not_grow():
    alarms = Alarms(ObserveConfig())
    for step in range(1, 300):
        alarms.look(metrics_of(step=step))
    size = len(json.dumps(alarms.state()))
    for step in range(300, 700):
        alarms.look(metrics_of(step=step))
    assert len(json.dumps(alarms.state())) < 1.1 * size


def test_the_routers_gradient_is_judged_from_the_end_of_a_common_start_on():
    """The patience begins there, not at the last step at which a gradient was measured."""
    alarms = watching(router_gradient=Rule(threshold=1e-6, patience=10))
    fired = [
        alarm.step
        for step in range(1, 61)
        for alarm in alarms.look(
            metrics_of(step=step, router_grad_norm=[0.0, None, 0.2]),
            has_equal_experts=step <= 30,
        )
    ]
    assert fired == [40, 50, 60]
