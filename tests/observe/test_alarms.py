"""Which figures each rule fires on, and what an alarm says."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace

import pytest

from moebius.config.observe import ObserveConfig, Rule
from moebius.observe.alarm import Alarm
from moebius.observe.alarms import Alarms
from tests.observe.made_up import metrics_of
from tests.observe.rules import ABOVE, on_cv, watching, where

# the figures of layers and experts


@pytest.mark.parametrize(
    ("name", "threshold", "harmful", "place", "value"),
    [
        ("cv", 0.3, {"cv": [0.2, 0.9, 0.31]}, ("cv", 2), 0.31),
        (
            "dead_expert",
            0.01,
            {"tokens_per_expert": [[30, 40, 50], [], [60, 1, 59]]},
            ("dead_expert", 2, 1),
            1 / 120,
        ),
        (
            "dead_expert",
            0.01,
            {"tokens_per_expert": [[0, 60, 60], [], [4, 4, 4]]},
            ("dead_expert", 0, 0),
            0.0,
        ),
        (
            "dominant_expert",
            0.5,
            {"tokens_per_expert": [[29, 30, 61], [], [4, 4, 4]]},
            ("dominant_expert", 0, 2),
            61 / 120,
        ),
        (
            "router_gradient",
            1e-6,
            {"router_grad_norm": [0.1, None, 1e-6]},
            ("router_gradient", 2),
            5e-7,
        ),
        (
            "routing_entropy",
            0.01,
            {"routing_entropy": [0.009, None, 0.8]},
            ("routing_entropy", 0),
            0.009,
        ),
        (
            "dropped_tokens",
            0.2,
            {"dropped_share": [0.21, 0.9, 0.2]},
            ("dropped_tokens", 0),
            0.21,
        ),
        (
            "unrouted_tokens",
            0.5,
            {"unrouted_share": [0.5, 0.9, 0.51]},
            ("unrouted_tokens", 2),
            0.51,
        ),
        (
            "vanishing_scores",
            0.5,
            {"vanished_share": [0.5, 0.9, 0.51]},
            ("vanishing_scores", 2),
            0.51,
        ),
        ("router_logits", 0, {"not_finite_logits": [0, 9, 1]}, ("router_logits", 2), 1),
    ],
)
def test_a_rule_fires_on_its_figure_alone(name, threshold, harmful, place, value):
    action = "stop" if name in ("router_logits", "vanishing_scores") else "raise_aux"
    rule = Rule(threshold=threshold, window=1, patience=0, action=action)
    harmful_step = metrics_of(step=7, **harmful)
    (alarm,) = watching(**{name: rule}).look(harmful_step)
    assert where(alarm) == place and alarm.value == pytest.approx(value, rel=1e-12)
    assert (alarm.step, alarm.threshold, alarm.action, alarm.over) == (7, threshold, action, False)
    assert not watching(**{name: rule}).look(metrics_of(step=7))
    without_patience = {
        name: replace(rule, patience=0) for name, rule in ObserveConfig().rules().items()
    }
    alarms = watching(**without_patience).look(harmful_step)
    assert [where(alarm) for alarm in alarms] == [place]


@pytest.mark.parametrize(
    "name", ["cv", "dead_expert", "dominant_expert", "routing_entropy", "dropped_tokens"]
)
def test_the_threshold_itself_is_harmless(name):
    at_threshold = metrics_of(
        step=1,
        cv=[0.25, 0.0, 0.0],
        tokens_per_expert=[[250, 2, 248] if name == "dead_expert" else [125, 125, 250], [], []],
        routing_entropy=[0.25, None, None],
        dropped_share=[0.25, 0.0, 0.0],
    )
    threshold = {"dominant_expert": 0.5, "dead_expert": 0.004}.get(name, 0.25)
    assert not watching(**{name: Rule(threshold=threshold, patience=0)}).look(at_threshold)
    stricter = threshold * (0.99 if name in ABOVE else 1.01)
    assert watching(**{name: Rule(threshold=stricter, patience=0)}).look(at_threshold)


def test_alarms_come_in_the_order_of_the_rules():
    alarms = watching(
        dominant_expert=Rule(threshold=0.5, patience=0),
        dead_expert=Rule(threshold=0.01, patience=0),
        cv=Rule(threshold=0.3, patience=0),
    )
    counts = [[0, 120, 0], [], [40, 40, 40]]
    metrics = metrics_of(step=1, tokens_per_expert=counts, cv=[1.41, 0.0, 0.0])
    assert [where(alarm) for alarm in alarms.look(metrics)] == [
        ("cv", 0),
        ("dead_expert", 0, 0, 2),
        ("dominant_expert", 0, 1),
    ]


@pytest.mark.parametrize(
    ("num_experts", "threshold", "limit"),
    [(1, 0.5, None), (2, 0.5, 2 / 3), (3, 0.5, 0.5), (4, 0.25, 1 / 3), (4, 0.4, 0.4)],
)
def test_a_dominant_expert_has_at_least_a_third_more_than_its_even_share(
    num_experts, threshold, limit
):
    alarms = watching(dominant_expert=Rule(threshold=threshold, patience=0))
    counts = [[100] + [0] * (num_experts - 1), [], [30] * num_experts]
    fired = alarms.look(metrics_of(tokens_per_expert=counts))
    expected = [] if limit is None else [("dominant_expert", 0, 0)]
    assert [where(alarm) for alarm in fired] == expected
    assert [alarm.threshold for alarm in fired] == [limit] * len(fired)


def test_an_expert_that_every_token_takes_beside_others_is_dominant():
    """With two experts per token, it has half of the load, but all of the tokens."""
    alarms = watching(dominant_expert=Rule(threshold=0.5, patience=0))
    counts = [[100, 34, 33, 33], [], [50] * 4]
    metrics = metrics_of(tokens_per_expert=counts, experts_per_token=[2.0, None, 2.0])
    (alarm,) = alarms.look(metrics)
    assert (where(alarm), alarm.value) == (("dominant_expert", 0, 0), 1.0)
    assert alarm.threshold == pytest.approx(2 / 3)


def watching_with_every_rule(window: int = 1) -> Alarms:
    """Return alarms that fire on every number, because no figure of a layer is harmless."""
    thresholds = {name: 0.0 if name in ABOVE else 1e9 for name in ObserveConfig().rules()}
    del thresholds["loss_spike"]
    rules = {
        name: Rule(threshold=threshold, patience=0, window=window)
        for name, threshold in thresholds.items()
    }
    return watching(**rules)


def test_layers_without_experts_are_not_watched():
    dense = metrics_of(
        step=1,
        tokens_per_expert=[[], [], []],
        cv=[9.0] * 3,
        routing_entropy=[None] * 3,
        router_grad_norm=[None] * 3,
        dropped_share=[9.0] * 3,
        unrouted_share=[9.0] * 3,
        vanished_share=[9.0] * 3,
        not_finite_logits=[9] * 3,
    )
    assert watching_with_every_rule().look(dense) == []


@pytest.mark.parametrize("window", [1, 5])
def test_figures_that_are_not_numbers_never_fire(window):
    alarms = watching_with_every_rule(window)
    names = (
        "cv",
        "routing_entropy",
        "router_grad_norm",
        "dropped_share",
        "unrouted_share",
        "vanished_share",
    )
    broken = {name: [math.nan] * 3 for name in names}
    # Without tokens, there are no shares of them, and without a gradient, no share of it.
    nothing = metrics_of(tokens_per_expert=[[0, 0, 0], [], [0, 0, 0]], grad_norm=0.0, **broken)
    for step in range(1, 4):
        assert alarms.look(replace(nothing, step=step)) == []
        assert alarms.look(replace(nothing, step=step, grad_norm=math.nan)) == []


def test_rules_that_are_off_are_silent_and_remember_nothing():
    alarms = watching()
    terrible = metrics_of(
        tokens_per_expert=[[0, 0, 120], [], [0, 0, 0]],
        cv=[9.0] * 3,
        not_finite_logits=[9] * 3,
        dropped_share=[1.0] * 3,
        unrouted_share=[1.0] * 3,
        routing_entropy=[0.0, None, 0.0],
    )
    for step in range(1, 200):
        assert alarms.look(replace(terrible, step=step, loss=step)) == []
    assert alarms.state() == {"seen": [], "fine_at": [], "beyond_at": [], "counted": []}


# the loss of the model as a whole


def on_loss(rule: Rule, losses: Iterable[float], log_every: int = 1) -> list[Alarm]:
    """Return the alarms of the rule for losses that a dense model logs every few steps."""
    alarms = watching(loss_spike=rule)
    dense = metrics_of(tokens_per_expert=[[], [], []])
    return [
        alarm
        for number, loss in enumerate(losses, start=1)
        for alarm in alarms.look(replace(dense, step=number * log_every, loss=loss))
    ]


SPIKE = Rule(threshold=1.5, window=100, patience=0, action="roll_back")


def test_a_loss_is_compared_with_the_median_before_it():
    # One outlier among five losses does not matter.
    (alarm,) = on_loss(SPIKE, [4.0, 9.0, 4.0, 4.2, 3.9, 6.2])
    assert where(alarm) == ("loss_spike", -1) and alarm.value == pytest.approx(6.2 / 4.0)
    assert (alarm.step, alarm.since, alarm.action) == (6, 5, "roll_back")
    assert alarm.figures == {"loss": 6.2, "grad_norm": 2.0, "lr": 0.01}
    assert str(alarm) == "step 6: alarm: loss over its median so far 1.55, above 1.50 since step 5"
    assert not on_loss(SPIKE, [4.0] * 5 + [6.0])  # exactly 1.5 times the median is harmless
    assert not on_loss(SPIKE, [11.0, 9.0, 7.0, 6.0, 5.5, 5.0, 4.8])


def test_fewer_than_five_losses_have_no_median():
    assert not on_loss(SPIKE, [4.0] * 4 + [40.0])
    assert [alarm.step for alarm in on_loss(SPIKE, [4.0] * 5 + [40.0])] == [6]
    # A threshold below 1 asks for a loss that falls by so much.
    assert [alarm.step for alarm in on_loss(replace(SPIKE, threshold=0.9), [4.0] * 6)] == [6]


def test_only_the_losses_inside_the_window_count():
    rule = replace(SPIKE, window=60)
    losses = [8.0] * 10 + [2.0] * 6 + [5.0]
    assert [alarm.step for alarm in on_loss(rule, losses, log_every=10)] == [170]
    assert not on_loss(replace(rule, window=1000), losses, log_every=10)
    # This window has only four losses before the last one.
    assert not on_loss(replace(rule, window=50), losses, log_every=10)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_of_fewer_than_five_losses_never_fires(window):
    assert not on_loss(replace(SPIKE, window=window), [4.0] * 20 + [40.0])


def test_a_loss_that_is_not_finite_is_left_out_of_the_median():
    assert not on_loss(SPIKE, [4.0] * 5 + [math.nan] * 3)  # its update is skipped anyway
    alarms = on_loss(SPIKE, [4.0] * 5 + [math.nan, math.inf] * 5 + [4.1, 6.3])
    assert alarms[-1].step == 17 and alarms[-1].value == pytest.approx(6.3 / 4.0)


# what an alarm says


def test_the_line_says_what_is_wrong_where_by_how_much_and_since_when():
    alarms = watching(dead_expert=Rule(threshold=0.01, patience=10))
    lines = []
    for step in (10, 20, 30, 40):
        counts = [[0 if step == 20 else 30, 60, 30], [], [40, 40, 40]]
        metrics = metrics_of(step=step, tokens_per_expert=counts)
        lines += [str(alarm) for alarm in alarms.look(metrics)]
    assert lines == [
        "step 20: alarm: layer 0, expert 0: share of the layer's load 0%, below 1% since step 10",
        "step 30: over: layer 0, expert 0: share of the layer's load 25%, no longer below 1%",
    ]
    (alarm,) = on_cv(Rule(threshold=0.3, patience=0), [(5, 1.414)])
    assert str(alarm) == "step 5: alarm: layer 0: CV of the load 1.41, above 0.30 since step 0"


@pytest.mark.parametrize(
    ("name", "value", "threshold", "words"),
    [
        ("dominant_expert", 0.725, 0.5, "share of the layer's tokens 72.5%, above 50.0%"),
        (
            "router_gradient",
            3.2e-8,
            1e-6,
            "router's share of the gradient norm 3.2e-08, below 1.0e-06",
        ),
        ("routing_entropy", 0.0042, 0.01, "entropy of the routing 0.004, below 0.010"),
        # With 512 experts, a tenth of the even share
        (
            "dead_expert",
            1 / 65536,
            1 / 5120,
            "share of the layer's load 0.00153%, below 0.0195%",
        ),
        ("vanishing_scores", 1.0, 0.5, "tokens whose scores vanish 100.0%, above 50.0%"),
        ("dropped_tokens", 0.3, 0.2, "tokens dropped by full experts 30.0%, above 20.0%"),
        ("unrouted_tokens", 0.9, 0.5, "tokens without an expert 90.0%, above 50.0%"),
        ("router_logits", 96, 0, "router logits that are not finite: 96, above 0"),
    ],
)
def test_every_rule_has_words(name, value, threshold, words):
    metrics = metrics_of(step=9)
    experts = (1,) if "expert" in name else ()
    alarm = Alarm(9, name, 3, experts, value, threshold, 4, "warn", False, metrics)
    who = "layer 3, expert 1" if experts else "layer 3"
    assert str(alarm) == f"step 9: alarm: {who}: {words} since step 4"


def test_an_event_is_json_and_has_the_figures_that_caused_it():
    alarms = watching(dead_expert=Rule(threshold=0.01, patience=0, action="revive"))
    counts = [[30, 40, 50], [], [80, 0, 40]]
    (alarm,) = alarms.look(metrics_of(step=8, tokens_per_expert=counts, cv=[0.2, 0.0, 0.82]))
    event = alarm.to_json()
    assert json.loads(json.dumps(event)) == event
    assert event == {
        "event": "alarm",
        "step": 8,
        "rule": "dead_expert",
        "layer": 2,
        "expert": 1,
        "experts": [1],
        "value": 0.0,
        "threshold": 0.01,
        "since": 0,
        "action": "revive",
        "over": False,
        "figures": {
            "tokens_per_expert": [80, 0, 40],
            "cv": 0.82,
            "max_violation": 0.0,
            "routing_entropy": 0.8,
            "router_grad_norm": 0.2,
        },
    }
