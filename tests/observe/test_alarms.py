"""Every rule on the figures it is for, and when it speaks: window, patience, again, over."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from moebius.observe.alarms import Alarm, Alarms, Place
from moebius.rules import ObserveConfig, Rule

ABOVE = ["cv", "dominant_expert", "dropped_tokens", "unrouted_tokens", "router_logits"]


def figures(step: int, **changes: Any) -> dict[str, Any]:
    """A metrics line of three healthy layers, of which the middle one is dense."""
    return {
        "step": step,
        "loss": 4.0,
        "lr": 0.01,
        "grad_norm": 2.0,
        "tokens_per_expert": [[30, 40, 50], [], [40, 40, 40]],
        "cv": [0.2, 0.0, 0.0],
        "max_violation": [0.25, 0.0, 0.0],
        "routing_entropy": [0.9, None, 0.8],
        "router_grad_norm": [0.1, None, 0.2],
        "dropped_share": [0.0, 0.0, 0.1],
        "unrouted_share": [0.0, 0.0, 0.1],
        "not_finite_logits": [0, 0, 0],
    } | changes


def watching(**rules: Rule) -> Alarms:
    """Of these rules alone."""
    off = {name: replace(rule, action="off") for name, rule in ObserveConfig().rules().items()}
    return Alarms(replace(ObserveConfig(), **(off | rules)))


def with_cv(step: int, value: float) -> dict[str, Any]:
    return figures(step, cv=[value, 0.0, 0.0])


def on_cv(rule: Rule, values: Iterable[tuple[int, float]]) -> list[Alarm]:
    """What a course of the first layer's CV, logged at these steps, gives rise to."""
    alarms = watching(cv=rule)
    return [alarm for step, value in values for alarm in alarms.look(with_cv(step, value))]


def fired_at(rule: Rule, values: Iterable[tuple[int, float]]) -> list[int]:
    found = on_cv(rule, values)
    assert not any(alarm.over for alarm in found)
    return [alarm.step for alarm in found]


# which figures


@pytest.mark.parametrize(
    ("name", "threshold", "harmful", "place", "value"),
    [
        ("cv", 0.3, {"cv": [0.2, 0.9, 0.31]}, Place("cv", 2), 0.31),
        ("dead_expert", 0.01, {"tokens_per_expert": [[30, 40, 50], [], [60, 1, 59]]}, Place("dead_expert", 2, 1), 1 / 120),
        ("dead_expert", 0.01, {"tokens_per_expert": [[0, 60, 60], [], [4, 4, 4]]}, Place("dead_expert", 0, 0), 0.0),
        (
            "dominant_expert",
            0.5,
            {"tokens_per_expert": [[29, 30, 61], [], [4, 4, 4]]},
            Place("dominant_expert", 0, 2),
            61 / 120,
        ),
        ("router_gradient", 1e-6, {"router_grad_norm": [0.1, None, 1e-6]}, Place("router_gradient", 2), 5e-7),
        ("routing_entropy", 0.01, {"routing_entropy": [0.009, None, 0.8]}, Place("routing_entropy", 0), 0.009),
        ("dropped_tokens", 0.2, {"dropped_share": [0.21, 0.9, 0.2]}, Place("dropped_tokens", 0), 0.21),
        ("unrouted_tokens", 0.5, {"unrouted_share": [0.5, 0.9, 0.51]}, Place("unrouted_tokens", 2), 0.51),
        ("router_logits", 0, {"not_finite_logits": [0, 9, 1]}, Place("router_logits", 2), 1),
    ],
)
def test_a_rule_fires_on_its_figure_alone(name, threshold, harmful, place, value):
    now = {"window": 1, "patience": 0, "threshold": threshold}
    action = "stop" if name == "router_logits" else "raise_aux"
    (alarm,) = watching(**{name: Rule(action=action, **now)}).look(figures(7, **harmful))
    assert alarm.place == place and alarm.value == pytest.approx(value, rel=1e-12)
    assert (alarm.step, alarm.threshold, alarm.action, alarm.over) == (7, threshold, action, False)
    assert not watching(**{name: Rule(**now)}).look(figures(7))
    others = {other: replace(rule, patience=0) for other, rule in ObserveConfig().rules().items()}
    assert [each.place for each in watching(**others).look(figures(7, **harmful))] == [place]


@pytest.mark.parametrize("name", ["cv", "dead_expert", "dominant_expert", "routing_entropy", "dropped_tokens"])
def test_the_threshold_itself_is_harmless(name):
    at_it = figures(
        1, cv=[0.25, 0.0, 0.25], tokens_per_expert=[[25, 25, 50], [], [1, 1, 2]], routing_entropy=[0.25, None, 0.25],
        dropped_share=[0.25, 0.0, 0.25],
    )  # fmt: skip
    threshold = 0.5 if name == "dominant_expert" else 0.25
    assert not watching(**{name: Rule(threshold=threshold, patience=0)}).look(at_it)
    closer = threshold * (0.99 if name in ABOVE else 1.01)
    assert watching(**{name: Rule(threshold=closer, patience=0)}).look(at_it)


def test_several_experts_and_rules_come_in_the_order_of_the_rules():
    alarms = watching(
        dominant_expert=Rule(threshold=0.5, patience=0),
        dead_expert=Rule(threshold=0.01, patience=0),
        cv=Rule(threshold=0.3, patience=0),
    )
    found = alarms.look(figures(1, tokens_per_expert=[[0, 120, 0], [], [40, 40, 40]], cv=[1.41, 0.0, 0.0]))
    assert [alarm.place for alarm in found] == [
        Place("cv", 0), Place("dead_expert", 0, 0), Place("dead_expert", 0, 2), Place("dominant_expert", 0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("num_experts", "threshold", "is_watched"),
    [(1, 0.5, False), (2, 0.5, False), (3, 0.5, True), (4, 0.25, False), (4, 0.26, True), (3, 0.3, False)],
)
def test_dominance_is_not_watched_where_an_even_share_is_as_much(num_experts, threshold, is_watched):
    alarms = watching(dominant_expert=Rule(threshold=threshold, patience=0))
    counts = [[100] + [0] * (num_experts - 1), [], [1] * num_experts]
    assert [alarm.place for alarm in alarms.look(figures(1, tokens_per_expert=counts))] == (
        [Place("dominant_expert", 0, 0)] if is_watched else []
    )


def every_rule_at_once(window: int = 1) -> Alarms:
    """Beyond at every figure that a layer has: thresholds that nothing satisfies."""
    beyond = {name: 0.0 if name in ABOVE else 1e9 for name in ObserveConfig().rules() if name != "loss_spike"}
    return watching(**{name: Rule(threshold=threshold, patience=0, window=window) for name, threshold in beyond.items()})


def test_layers_without_experts_are_not_watched():
    dense = figures(
        1, tokens_per_expert=[[], [], []], cv=[9.0] * 3, routing_entropy=[None] * 3, router_grad_norm=[None] * 3,
        dropped_share=[9.0] * 3, unrouted_share=[9.0] * 3, not_finite_logits=[9] * 3,
    )  # fmt: skip
    assert every_rule_at_once().look(dense) == []


@pytest.mark.parametrize("window", [1, 5])
def test_figures_that_are_not_numbers_never_fire(window):
    alarms = every_rule_at_once(window)
    nan = [math.nan] * 3
    broken = {"cv": nan, "routing_entropy": nan, "router_grad_norm": nan, "dropped_share": nan, "unrouted_share": nan}
    for step in range(1, 4):
        # without a token there is no share, and without a gradient no part of it
        nothing = figures(step, grad_norm=0.0, tokens_per_expert=[[0, 0, 0], [], [0, 0, 0]], **broken)
        assert alarms.look(nothing) == []
        assert alarms.look(nothing | {"grad_norm": math.nan}) == []


def test_off_is_silent_and_remembers_nothing():
    alarms = watching()
    for step in range(1, 200):
        terrible = figures(
            step, tokens_per_expert=[[0, 0, 120], [], [0, 0, 0]], cv=[9.0] * 3, not_finite_logits=[9] * 3,
            dropped_share=[1.0] * 3, unrouted_share=[1.0] * 3, routing_entropy=[0.0, None, 0.0], loss=step,
        )  # fmt: skip
        assert alarms.look(terrible) == []
    assert alarms.state() == {"seen": [], "fine_at": [], "beyond_at": []}


# the loss of the model as a whole


def on_loss(rule: Rule, losses: Iterable[float], log_every: int = 1) -> list[Alarm]:
    alarms = watching(loss_spike=rule)
    return [
        alarm
        for number, loss in enumerate(losses, start=1)
        for alarm in alarms.look(figures(number * log_every, loss=loss, tokens_per_expert=[[], [], []]))
    ]


SPIKE = Rule(threshold=1.5, window=100, patience=0, action="roll_back")


def test_a_loss_is_held_against_the_median_before_it():
    (alarm,) = on_loss(SPIKE, [4.0, 9.0, 4.0, 4.2, 3.9, 6.2])  # one outlier among five does not matter
    assert alarm.place == Place("loss_spike", -1) and alarm.value == pytest.approx(6.2 / 4.0)
    assert (alarm.step, alarm.since, alarm.action) == (6, 5, "roll_back")
    assert alarm.figures == {"loss": 6.2, "grad_norm": 2.0, "lr": 0.01}
    assert str(alarm) == "step 6: alarm: loss over its median so far 1.55, above 1.50 since step 5"
    assert not on_loss(SPIKE, [4.0] * 5 + [6.0])  # 1.5 times is still harmless
    assert not on_loss(SPIKE, [11.0, 9.0, 7.0, 6.0, 5.5, 5.0, 4.8])


def test_a_median_of_fewer_than_five_is_none():
    assert not on_loss(SPIKE, [4.0] * 4 + [40.0])
    assert [alarm.step for alarm in on_loss(SPIKE, [4.0] * 5 + [40.0])] == [6]


def test_only_the_losses_inside_the_window_count():
    rule = replace(SPIKE, window=60)
    falling = [8.0] * 10 + [2.0] * 6
    assert [alarm.step for alarm in on_loss(rule, [*falling, 5.0], log_every=10)] == [170]
    assert not on_loss(replace(rule, window=1000), [*falling, 5.0], log_every=10)
    assert not on_loss(replace(rule, window=50), [*falling, 5.0], log_every=10)  # holds four before the last


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_of_fewer_than_five_losses_never_fires(window):
    assert not on_loss(replace(SPIKE, window=window), [4.0] * 20 + [40.0])


def test_a_loss_that_is_not_finite_is_left_out_of_the_median():
    assert not on_loss(SPIKE, [4.0] * 5 + [math.nan] * 3)  # its update is skipped anyway
    found = on_loss(SPIKE, [4.0] * 5 + [math.nan, math.inf] * 5 + [4.1, 6.3])
    assert found[-1].step == 17 and found[-1].value == pytest.approx(6.3 / 4.0)


# when


@pytest.mark.parametrize("patience", [0, 1, 3, 10])
def test_patience_is_counted_from_the_last_harmless_step(patience):
    rule = Rule(threshold=0.3, patience=patience)
    course = [(step, 0.9 if step > 4 else 0.1) for step in range(1, 40)]
    assert fired_at(rule, course)[0] == max(5, 4 + patience)  # patience 0: as soon as it is seen


@pytest.mark.parametrize("log_every", [1, 3, 7, 20, 50, 60])
@pytest.mark.parametrize("patience", [1, 20, 50])
@pytest.mark.parametrize("onset", [1, 61, 100])
def test_an_alarm_is_at_most_a_log_step_late(log_every, patience, onset):
    """onset: the first step whose figure is beyond."""
    steps = range(log_every, 1000, log_every)
    harmless = max((step for step in steps if step < onset), default=0)
    fired = fired_at(Rule(threshold=0.3, patience=patience), [(step, 0.9 if step >= onset else 0.1) for step in steps])
    due = harmless + patience
    assert fired[0] == max(math.ceil(due / log_every) * log_every, harmless + log_every)
    again = math.ceil(patience / log_every) * log_every
    assert fired == list(range(fired[0], 1000, again))  # and after each further patience of that


def test_a_harmless_figure_starts_the_patience_anew():
    rule = Rule(threshold=0.3, patience=5)
    assert fired_at(rule, [(step, 0.1 if step % 5 == 0 else 0.9) for step in range(1, 60)]) == []
    assert fired_at(rule, [(step, 0.1 if step == 4 else 0.9) for step in range(1, 12)]) == [9]


def test_the_mean_is_over_the_logged_steps_inside_the_window():
    rule = Rule(threshold=0.3, window=4, patience=0)
    # steps 1 to 4: mean 0.25; 2 to 5: 0.5
    found = on_cv(rule, [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0), (5, 1.0)])
    assert [(alarm.step, alarm.value) for alarm in found] == [(5, 0.5)]
    # of the five steps up to the ninth three are logged
    (alarm,) = on_cv(replace(rule, window=5), [(4, 0.0), (5, 0.3), (8, 0.2), (9, 1.0)])
    assert alarm.value == pytest.approx(0.5)
    # further apart than the window: each by itself
    assert [alarm.value for alarm in on_cv(rule, [(10, 0.9), (20, 0.1), (30, 0.8)]) if not alarm.over] == [0.9, 0.8]


def test_a_single_bad_step_inside_a_window_is_no_alarm():
    rule = Rule(threshold=0.3, window=20, patience=0)
    course = [(step, 2.0 if step == 50 else 0.15) for step in range(1, 101)]
    assert on_cv(rule, course) == []
    assert on_cv(replace(rule, window=1), course)


def test_it_is_over_after_a_patience_of_harmless_figures():
    rule = Rule(threshold=0.3, patience=4)
    course = [(step, 0.9 if 3 < step <= 12 else 0.1) for step in range(1, 60)]
    found = on_cv(rule, course)
    assert [(alarm.step, alarm.since, alarm.over) for alarm in found] == [
        (7, 3, False), (11, 7, False), (16, 12, True),
    ]  # fmt: skip
    assert all(alarm.figures == found[0].figures | {"cv": 0.1 if alarm.over else 0.9} for alarm in found)


def test_what_never_fired_is_never_over():
    assert on_cv(Rule(threshold=0.3, patience=4), [(step, 0.9 if step in (3, 4, 9) else 0.1) for step in range(1, 60)]) == []


def test_a_relapse_puts_the_end_off():
    rule = Rule(threshold=0.3, patience=4)
    course = [(step, 0.9 if step <= 4 or step == 7 else 0.1) for step in range(1, 20)]
    assert [(alarm.step, alarm.over) for alarm in on_cv(rule, course)] == [(4, False), (11, True)]


def test_kept_in_view_it_is_over_again_and_again():
    alarms = watching(cv=Rule(threshold=0.3, patience=3))
    told = []
    for step in range(1, 20):
        for alarm in alarms.look(with_cv(step, 0.9 if step <= 3 else 0.1)):
            told.append((alarm.step, alarm.over))
            if alarm.over and len(told) < 4:
                alarms.keep_watching(alarm)
    assert told == [(3, False), (6, True), (9, True), (12, True)]


def test_experts_are_watched_one_by_one():
    alarms = watching(dead_expert=Rule(threshold=0.01, patience=3))
    told = []
    for step in range(1, 12):
        counts = [0 if step <= 4 else 40, 40, 0 if 2 < step <= 6 else 40]
        found = alarms.look(figures(step, tokens_per_expert=[counts, [], [40, 40, 40]]))
        told += [(alarm.step, alarm.expert, alarm.over) for alarm in found]
    assert told == [(3, 0, False), (5, 2, False), (7, 0, True), (9, 2, True)]


# what is kept


@pytest.mark.parametrize("stopped_at", [4, 6, 7, 11, 13, 18, 19])
@pytest.mark.parametrize("window", [1, 6])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(stopped_at, window):
    def rules() -> Alarms:
        return watching(
            cv=Rule(threshold=0.3, window=window, patience=4),
            dead_expert=Rule(threshold=0.01, window=window, patience=5),
            loss_spike=Rule(threshold=1.5, window=20, patience=0),
        )

    def line(step: int) -> dict[str, Any]:
        dead = [0 if 5 < step < 16 else 40, 40, 40]
        loss = 5.0 / step**0.5 * (2 if step in (11, 31) else 1)
        return figures(
            step, loss=loss, cv=[0.9 if step % 12 < 8 else 0.1, 0.0, 0.25], tokens_per_expert=[dead, [], [40, 40, 40]]
        )

    steps = range(1, 60, 2)
    whole = rules()
    expected = [alarm for step in steps for alarm in whole.look(line(step))]
    assert {alarm.over for alarm in expected} == {True, False} and len(expected) > 6
    assert {alarm.rule for alarm in expected} == {"cv", "dead_expert", "loss_spike"}

    first = rules()
    found = [alarm for step in steps if step <= stopped_at for alarm in first.look(line(step))]
    second = rules()
    second.load(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    found += [alarm for step in steps if step > stopped_at for alarm in second.look(line(step))]
    assert found == expected
    assert second.state() == whole.state()


def test_what_is_remembered_does_not_grow():
    alarms = Alarms(ObserveConfig())
    for step in range(1, 300):
        alarms.look(figures(step))
    early = len(json.dumps(alarms.state()))
    for step in range(300, 700):
        alarms.look(figures(step))
    assert len(json.dumps(alarms.state())) < 1.1 * early


# what is told


def test_the_line_says_who_what_how_much_and_since_when():
    dead = watching(dead_expert=Rule(threshold=0.01, patience=10))
    lines = []
    for step in (10, 20, 30, 40):
        counts = [[0 if step == 20 else 30, 60, 30], [], [40, 40, 40]]
        lines += [str(alarm) for alarm in dead.look(figures(step, tokens_per_expert=counts))]
    assert lines == [
        "step 20: alarm: layer 0, expert 0: share of the layer's tokens 0.0%, below 1.0% since step 10",
        "step 30: over: layer 0, expert 0: share of the layer's tokens 25.0%, no longer below 1.0%",
    ]
    (alarm,) = on_cv(Rule(threshold=0.3, patience=0), [(5, 1.414)])
    assert str(alarm) == "step 5: alarm: layer 0: CV of the load 1.41, above 0.30 since step 0"


@pytest.mark.parametrize(
    ("name", "value", "threshold", "said"),
    [
        ("dominant_expert", 0.725, 0.5, "share of the layer's tokens 72.5%, above 50.0%"),
        ("router_gradient", 3.2e-8, 1e-6, "router's share of the gradient norm 3.2e-08, below 1.0e-06"),
        ("routing_entropy", 0.0042, 0.01, "entropy of the routing 0.004, below 0.010"),
        ("dropped_tokens", 0.3, 0.2, "tokens dropped by full experts 30.0%, above 20.0%"),
        ("unrouted_tokens", 0.9, 0.5, "tokens without an expert 90.0%, above 50.0%"),
        ("router_logits", 96, 0, "router logits that are not finite: 96, above 0"),
    ],
)
def test_every_rule_has_words(name, value, threshold, said):
    expert = 1 if name == "dominant_expert" else -1
    alarm = Alarm(9, name, 3, expert, value, threshold, 4, "warn", False, {})
    who = "layer 3, expert 1" if expert == 1 else "layer 3"
    assert str(alarm) == f"step 9: alarm: {who}: {said} since step 4"


def test_an_event_is_json_and_has_the_figures_that_caused_it():
    alarms = watching(dead_expert=Rule(threshold=0.01, patience=0, action="revive"))
    (alarm,) = alarms.look(figures(8, tokens_per_expert=[[30, 40, 50], [], [80, 0, 40]], cv=[0.2, 0.0, 0.82]))
    event = alarm.event("what was done")
    assert json.loads(json.dumps(event)) == event
    assert event == {
        "event": "alarm", "step": 8, "rule": "dead_expert", "layer": 2, "expert": 1, "value": 0.0, "threshold": 0.01,
        "since": 0, "action": "revive", "over": False, "done": "what was done",
        "figures": {
            "tokens_per_expert": [80, 0, 40], "cv": 0.82, "max_violation": 0.0, "routing_entropy": 0.8, "router_grad_norm": 0.2,
        },
    }  # fmt: skip
