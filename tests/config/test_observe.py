"""The settings of alarms: their defaults, and the errors for values that they refuse."""

from dataclasses import asdict, fields, replace
from typing import Any, get_args

import pytest

from moebius.config.observe import Action, ObserveConfig, Rule
from moebius.errors import ConfigError

ABOUT_LOAD = ("cv", "dead_expert", "dominant_expert", "routing_entropy")
ABOUT_LOSS = ("router_gradient", "dropped_tokens", "unrouted_tokens")
ACTIONS = {
    **dict.fromkeys(ABOUT_LOAD, ("off", "warn", "raise_aux", "nudge_bias", "revive", "stop")),
    **dict.fromkeys(ABOUT_LOSS, ("off", "warn", "raise_aux", "nudge_bias", "stop")),
    "vanishing_scores": ("off", "warn", "stop"),
    "router_logits": ("off", "warn", "stop"),
    "loss_spike": ("off", "warn", "roll_back", "stop"),
}


def with_rule(name: str, **values: Any) -> ObserveConfig:
    observe = ObserveConfig()
    return replace(observe, **{name: replace(getattr(observe, name), **values)})


def refusal(name: str, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        with_rule(name, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ten_alarms_and_only_logits_that_are_not_finite_stop_a_run():
    rules = ObserveConfig().rules()
    assert list(rules) == [
        "cv",
        "dead_expert",
        "dominant_expert",
        "router_gradient",
        "routing_entropy",
        "dropped_tokens",
        "unrouted_tokens",
        "vanishing_scores",
        "router_logits",
        "loss_spike",
    ]
    assert {name for name, rule in rules.items() if rule.action != "warn"} == {"router_logits"}
    assert rules["router_logits"].action == "stop"
    assert not {"progress", "tensorboard"} & rules.keys()
    assert set(rules) == set(ACTIONS)


def test_rules_are_the_configured_ones():
    observe = with_rule("cv", threshold=0.7)
    assert observe.rules()["cv"] is observe.cv
    assert observe.rules()["cv"] == Rule(threshold=0.7, window=20, patience=100, action="warn")


@pytest.mark.parametrize("action", get_args(Action))
@pytest.mark.parametrize("name", ACTIONS)
def test_only_actions_that_can_answer_an_alarm_are_accepted(name, action):
    if action in ACTIONS[name]:
        assert getattr(with_rule(name, action=action), name).action == action
    else:
        allowed = ", ".join(ACTIONS[name])
        assert (
            refusal(name, action=action)
            == f"observe.{name}.action={action!r}: this alarm's action must be one of {allowed}"
        )


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": -0.1}, "threshold=-0.1: must be at least 0"),
        ({"threshold": float("nan")}, "threshold=nan: must be a finite number"),
        ({"threshold": float("inf")}, "threshold=inf: must be a finite number"),
        ({"threshold": "0.5"}, "threshold='0.5': must be a number"),
        ({"window": 0}, "window=0: must be at least 1"),
        ({"window": 1.5}, "window=1.5: must be an integer"),
        ({"patience": -1}, "patience=-1: must be at least 0"),
        ({"patience": True}, "patience=True: must be an integer"),
        (
            {"action": "stopp"},
            f"action='stopp': must be one of {', '.join(get_args(Action))}; did you mean stop?",
        ),
    ],
)
def test_a_refusal_names_the_setting_of_the_rule(name, values, message):
    assert refusal(name, **values) == f"observe.{name}.{message}"


def test_the_bounds_themselves_are_allowed():
    rule = with_rule("cv", threshold=0, window=1, patience=0).cv
    assert rule == Rule(threshold=0.0, window=1, patience=0, action="warn")
    assert (
        type(rule.threshold) is float
    )  # an integer from a file or a flag is written back as a number


@pytest.mark.parametrize("value", [3, None, {"threshold": 0.5}, "warn"])
def test_an_alarm_must_be_a_rule(value):
    with pytest.raises(ConfigError) as caught:
        ObserveConfig(cv=value)
    assert str(caught.value) == f"observe.cv={value!r}: must be of type Rule"


@pytest.mark.parametrize("name", ["progress", "tensorboard"])
def test_a_switch_must_be_true_or_false(name):
    with pytest.raises(ConfigError) as caught:
        ObserveConfig(**{name: 0})  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == f"observe.{name}=0: must be true or false"


def test_every_rule_has_four_settings():
    assert [field.name for field in fields(Rule)] == ["threshold", "window", "patience", "action"]
    assert asdict(ObserveConfig())["dead_expert"] == {
        "threshold": 0.01,
        "window": 1,
        "patience": 50,
        "action": "warn",
    }
