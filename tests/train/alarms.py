"""Made-up alarms, and configurations with only some of the rules."""

from dataclasses import replace
from typing import Any

from moebius.config.observe import Action, ObserveConfig, Rule
from moebius.observe.alarm import Alarm
from moebius.observe.metrics import LayerMetrics
from tests.observe.made_up import metrics_of

COUNTS = (30, 20, 10, 4)


def alarm_of(
    action: Action, layer: int = 0, counts: tuple[int, ...] = COUNTS, **changes: Any
) -> Alarm:
    """Return an alarm about a layer whose experts took these numbers of tokens."""
    values: dict[str, Any] = {
        "rule": "cv",
        "experts": (),
        "value": 0.5,
        "threshold": 0.3,
        "step": 10,
        "since": 5,
        "over": False,
    }
    layers = [LayerMetrics(tokens_per_expert=list(counts))] * 5
    metrics = replace(metrics_of(), layers=layers)
    return Alarm(action=action, layer=layer, metrics=metrics, **(values | changes))


def dead(expert: int, *counts: int, layer: int = 0) -> Alarm:
    """Return an alarm about a dead expert that is to be revived."""
    return alarm_of("revive", layer, counts, rule="dead_expert", experts=(expert,), threshold=0.01)


def observing(observe: ObserveConfig | None = None, **rules: Rule) -> ObserveConfig:
    """Return a configuration with only these rules; every other rule is off."""
    observe = observe or ObserveConfig()
    off: dict[str, Any] = {
        name: replace(rule, action="off") for name, rule in observe.rules().items()
    }
    return replace(observe, **(off | rules))
