"""Alarms as settings: their defaults, and what each refusal says."""

from dataclasses import asdict, fields, replace
from typing import Any, get_args

import pytest

from moebius.errors import ConfigError
from moebius.rules import Action, ObserveConfig, Rule

OF_LOAD = ("cv", "dead_expert", "dominant_expert", "routing_entropy")
OF_LOSS = ("router_gradient", "dropped_tokens", "unrouted_tokens")
ANSWERS = {
    **dict.fromkeys(OF_LOAD, ("off", "warn", "raise_aux", "nudge_bias", "revive", "stop")),
    **dict.fromkeys(OF_LOSS, ("off", "warn", "raise_aux", "nudge_bias", "stop")),
    "router_logits": ("off", "warn", "stop"),
    "loss_spike": ("off", "warn", "roll_back", "stop"),
}


def with_rule(name: str, **values: Any) -> ObserveConfig:
    own = ObserveConfig()
    return replace(own, **{name: replace(getattr(own, name), **values)})


def refusal(name: str, **values: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        with_rule(name, **values)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_nine_alarms_and_only_logits_that_are_not_finite_stop_a_run():
    rules = ObserveConfig().rules()
    assert list(rules) == [
        "cv", "dead_expert", "dominant_expert", "router_gradient", "routing_entropy", "dropped_tokens", "unrouted_tokens",
        "router_logits", "loss_spike",
    ]  # fmt: skip
    assert {name for name, rule in rules.items() if rule.action != "warn"} == {"router_logits"}
    assert rules["router_logits"].action == "stop"
    assert not {"progress", "tensorboard"} & rules.keys()
    assert set(rules) == set(ANSWERS)


def test_rules_are_the_configured_ones():
    observe = with_rule("cv", threshold=0.7)
    assert observe.rules()["cv"] is observe.cv
    assert observe.rules()["cv"] == Rule(threshold=0.7, window=20, patience=100, action="warn")


@pytest.mark.parametrize("action", get_args(Action))
@pytest.mark.parametrize("name", ANSWERS)
def test_only_what_can_answer_an_alarm_is_accepted(name, action):
    if action in ANSWERS[name]:
        assert getattr(with_rule(name, action=action), name).action == action
    else:
        allowed = ", ".join(ANSWERS[name])
        assert refusal(name, action=action) == f"observe.{name}.action={action!r}: one of {allowed} can answer this alarm"


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"threshold": -0.1}, "threshold=-0.1: must be at least 0"),
        ({"threshold": float("nan")}, "threshold=nan: a finite number is wanted"),
        ({"threshold": float("inf")}, "threshold=inf: a finite number is wanted"),
        ({"threshold": "0.5"}, "threshold='0.5': a number is wanted"),
        ({"window": 0}, "window=0: must be at least 1"),
        ({"window": 1.5}, "window=1.5: an integer is wanted"),
        ({"patience": -1}, "patience=-1: must be at least 0"),
        ({"patience": True}, "patience=True: an integer is wanted"),
        (
            {"action": "stopp"},
            f"action='stopp': one of {', '.join(get_args(Action))} is wanted; did you mean stop?",
        ),
    ],
)
def test_a_refusal_names_the_rules_own_field(name, values, said):
    assert refusal(name, **values) == f"observe.{name}.{said}"


def test_the_bounds_themselves_are_allowed():
    rule = with_rule("cv", threshold=0, window=1, patience=0).cv
    assert rule == Rule(threshold=0.0, window=1, patience=0, action="warn")
    assert type(rule.threshold) is float  # an integer from a file or a flag is written back as a number


@pytest.mark.parametrize("value", [3, None, {"threshold": 0.5}, "warn"])
def test_a_rule_is_wanted(value):
    with pytest.raises(ConfigError) as refused:
        ObserveConfig(cv=value)
    assert str(refused.value) == f"observe.cv={value!r}: Rule is wanted"


def test_every_rule_has_all_four_fields():
    assert [field.name for field in fields(Rule)] == ["threshold", "window", "patience", "action"]
    assert asdict(ObserveConfig())["dead_expert"] == {"threshold": 0.01, "window": 1, "patience": 50, "action": "warn"}
