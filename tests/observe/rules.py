"""Alarms with only some of the rules, and what they report while one figure rises and falls."""

from collections.abc import Iterable
from dataclasses import replace

from moebius.config.observe import ObserveConfig, Rule
from moebius.observe.alarm import Alarm
from moebius.observe.alarms import Alarms
from moebius.observe.metrics import StepMetrics
from tests.observe.made_up import metrics_of

ABOVE = [
    "cv",
    "dominant_expert",
    "dropped_tokens",
    "unrouted_tokens",
    "vanishing_scores",
    "router_logits",
]
"""Rules that fire above their threshold; the others fire below it."""


Where = tuple[str | int, ...]
"""A rule, a layer and the experts that an alarm is about."""


def where(alarm: Alarm) -> Where:
    """Return what an alarm is about; its experts in order."""
    return (alarm.rule, alarm.layer, *sorted(alarm.experts))


def watching(**rules: Rule) -> Alarms:
    """Return alarms with only these rules; every other rule is off."""
    off = {name: replace(rule, action="off") for name, rule in ObserveConfig().rules().items()}
    return Alarms(replace(ObserveConfig(), **(off | rules)))


def with_cv(step: int, value: float) -> StepMetrics:
    """Return a step whose first layer has this CV; its third layer has a CV of 0."""
    return metrics_of(step=step, cv=[value, 0.0, 0.0])


def on_cv(rule: Rule, course: Iterable[tuple[int, float]]) -> list[Alarm]:
    """Return the alarms of the rule for the first layer's CV, logged as (step, value) pairs."""
    alarms = watching(cv=rule)
    return [alarm for step, value in course for alarm in alarms.look(with_cv(step, value))]


def steps_fired_at(rule: Rule, course: Iterable[tuple[int, float]]) -> list[int]:
    """Return the steps at which the rule fires on the CV. Fails if an alarm ends in between."""
    alarms = on_cv(rule, course)
    assert not any(alarm.over for alarm in alarms)
    return [alarm.step for alarm in alarms]
