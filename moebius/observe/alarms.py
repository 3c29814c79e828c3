"""Alarms: rules that are applied to every logged step.

This file only decides which alarms fire. What they watch is in moebius/observe/figures.py, and
what is done about them in moebius/train/actions.py.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from moebius.config.observe import Action, ObserveConfig, Rule
from moebius.moe.load import is_enough
from moebius.observe.figures import ABOUT_LOAD, Figure, Place, figures
from moebius.observe.metrics import StepMetrics

FEWEST_LOSSES = 5  # losses that must precede a loss before it is compared with their median


@dataclass(frozen=True)
class Alarm:
    """A rule that fired, or one that had fired and whose figure is harmless again."""

    step: int
    rule: str
    layer: int
    """Number of the layer; -1 for the model as a whole."""
    expert: int
    """Number of the expert; -1 for the layer as a whole."""
    value: float
    """The figure that the rule watches."""
    threshold: float
    """The figure's last harmless value."""
    since: int
    """Last step at which the figure was harmless, or at which the alarm last fired."""
    action: Action
    """The configured action."""
    over: bool
    """Whether the alarm is over: the figure was harmless for as long as the rule's patience."""
    metrics: StepMetrics
    """The logged step that the alarm comes from."""
    load: list[int] | None = None
    """Tokens that each of the layer's experts took in as many logged steps as it takes to judge
    the load. None if it cannot be judged yet, or if the alarm is about the model."""

    @property
    def place(self) -> Place:
        """The rule, layer and expert that the alarm is about."""
        return Place(self.rule, self.layer, self.expert)

    @property
    def counts(self) -> list[int]:
        """Tokens that each of the layer's experts took: `load`, or those of the logged step.

        Only for an alarm about a layer.
        """
        return self.load or self.metrics.layers[self.layer].tokens_per_expert

    @property
    def figures(self) -> dict[str, Any]:
        """The figures to record with the alarm: the layer's or, without a layer, the model's."""
        if self.layer < 0:
            return {name: getattr(self.metrics, name) for name in ("loss", "grad_norm", "lr")}
        names = (
            "tokens_per_expert",
            "cv",
            "max_violation",
            "routing_entropy",
            "router_grad_norm",
        )
        return {name: getattr(self.metrics.layers[self.layer], name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return the alarm as an object for events.jsonl, with `figures`."""
        names = (
            "step",
            "rule",
            "layer",
            "expert",
            "value",
            "threshold",
            "since",
            "action",
            "over",
        )
        event = {"event": "over" if self.over else "alarm"}
        return event | {name: getattr(self, name) for name in names} | {"figures": self.figures}

    def __str__(self) -> str:
        words = _WORDS[self.rule]
        who = f"layer {self.layer}: " if self.layer >= 0 else ""
        who = f"layer {self.layer}, expert {self.expert}: " if self.expert >= 0 else who
        value, threshold = (words.number(n) for n in (self.value, self.threshold))
        side = "above" if words.is_above else "below"
        if self.over:
            kind, end = "over", f"no longer {side} {threshold}"
        else:
            kind, end = "alarm", f"{side} {threshold} since step {self.since}"
        return f"step {self.step}: {kind}: {who}{words.figure} {value}, {end}"


class Alarms:
    """All rules of a run and what they have seen so far, which is part of its resumable state."""

    def __init__(self, config: ObserveConfig):
        self.rules = {name: rule for name, rule in config.rules().items() if rule.action != "off"}
        self.seen: dict[Place, list[tuple[int, float]]] = defaultdict(list)
        """Steps and logged figures inside each rule's window."""
        self.fine_at: dict[Place, int] = {}
        """Last step at which each figure was harmless, or at which its alarm fired."""
        self.beyond_at: dict[Place, int] = {}
        """For alarms that have fired: last step at which the figure was beyond the threshold."""
        self.counted: dict[int, list[int]] = {}
        """For layers whose logged steps have too few tokens to judge the load: the tokens per
        expert since it was last judged, by the layer's number."""

    def look(self, metrics: StepMetrics, has_equal_experts: bool = False) -> list[Alarm]:
        """Return the alarms that fire or end at a logged step, in the order of the rules.

        With `has_equal_experts`, all experts of a layer were equal in this step (a common start),
        and the router's gradient is not judged.
        """
        alarms: list[Alarm] = []
        loads = self._loads(metrics)
        for name, rule in self.rules.items():
            for figure in figures(name, rule, metrics, loads, has_equal_experts):
                value = self._over_window(figure.place, rule, metrics.step, figure.value)
                figure = figure._replace(value=value)
                judge = self._beyond if _is_beyond(figure) else self._harmless
                alarms += judge(figure, rule, metrics)
        return [replace(alarm, load=loads.get(alarm.layer)) for alarm in alarms]

    def keep_watching(self, alarm: Alarm) -> None:
        """Report the end of the alarm again after another `patience` harmless steps.

        An action that takes several steps to undo needs this.
        """
        self.beyond_at[alarm.place] = alarm.step

    def state(self) -> dict[str, Any]:
        """Return what has been seen, for a checkpoint's JSON."""
        return {
            "seen": [[*place, steps] for place, steps in self.seen.items()],
            "fine_at": [[*place, step] for place, step in self.fine_at.items()],
            "beyond_at": [[*place, step] for place, step in self.beyond_at.items()],
            "counted": [[layer, counts] for layer, counts in self.counted.items()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, in this version or in one without `counted`."""
        seen = {Place(*place): [(s, v) for s, v in steps] for *place, steps in state["seen"]}
        self.seen = defaultdict(list, seen)
        self.fine_at = {Place(*place): step for *place, step in state["fine_at"]}
        self.beyond_at = {Place(*place): step for *place, step in state["beyond_at"]}
        self.counted = {layer: list(counts) for layer, counts in state.get("counted", [])}

    def _loads(self, metrics: StepMetrics) -> dict[int, list[int]]:
        """Return the tokens per expert of the layers whose load can be judged at this step.

        With 512 experts and 2,048 tokens, every 55th healthy expert has no token in a step, and
        the CV is 0.5. Steps are therefore added up until they have enough tokens.
        """
        if not any(name in self.rules for name in ABOUT_LOAD):
            return {}
        loads: dict[int, list[int]] = {}
        for number, layer in metrics.routed_layers:
            counts = layer.tokens_per_expert
            before = self.counted.pop(number, [])
            if len(before) == len(counts):
                counts = [sum(pair) for pair in zip(before, counts, strict=True)]
            (loads if is_enough(counts) else self.counted)[number] = counts
        return loads

    def _over_window(self, place: Place, rule: Rule, step: int, figure: float) -> float:
        """Return the figure's mean over the window; for a loss, its ratio to the median."""
        if rule.window == 1 and place.rule != "loss_spike":
            return figure
        before = [(at, value) for at, value in self.seen[place] if step - rule.window < at < step]
        values = [value for _, value in before]
        if math.isfinite(figure):
            self.seen[place] = [*before, (step, figure)]
        if place.rule == "loss_spike":
            return figure / statistics.median(values) if len(values) >= FEWEST_LOSSES else 1.0
        return (sum(values) + figure) / (len(values) + 1)

    def _beyond(self, figure: Figure, rule: Rule, metrics: StepMetrics) -> Iterator[Alarm]:
        place, step = figure.place, metrics.step
        if place in self.beyond_at:
            self.beyond_at[place] = step
        # The figure may have crossed the threshold right after the last step at which it was
        # harmless.
        since = self.fine_at.setdefault(place, 0)
        if step - since >= rule.patience:
            self.fine_at[place] = self.beyond_at[place] = step
            yield _alarm(figure, rule, since, metrics, over=False)

    def _harmless(self, figure: Figure, rule: Rule, metrics: StepMetrics) -> Iterator[Alarm]:
        place, step = figure.place, metrics.step
        self.fine_at[place] = step
        if place in self.beyond_at and step - self.beyond_at[place] >= rule.patience:
            since = self.beyond_at.pop(place)
            yield _alarm(figure, rule, since, metrics, over=True)


def _alarm(figure: Figure, rule: Rule, since: int, metrics: StepMetrics, over: bool) -> Alarm:
    place, value, threshold = figure
    return Alarm(metrics.step, *place, value, threshold, since, rule.action, over, metrics)


def _percent(share: float) -> str:
    """Return a share as a percentage with three digits: a dead expert's may be far below 1%."""
    return f"{100 * share:.3g}%"


class _Words(NamedTuple):
    """The words of an alarm's line."""

    figure: str
    number: Callable[[float], str]
    """Writes the figure and its threshold."""
    is_above: bool
    """Whether the rule fires above its threshold and not below it."""


_SHARE = "{:.1%}".format
_WORDS = {
    "cv": _Words("CV of the load", "{:.2f}".format, is_above=True),
    "dead_expert": _Words("share of the layer's load", _percent, is_above=False),
    "dominant_expert": _Words("share of the layer's tokens", _SHARE, is_above=True),
    "router_gradient": _Words(
        "router's share of the gradient norm", "{:.1e}".format, is_above=False
    ),
    "routing_entropy": _Words("entropy of the routing", "{:.3f}".format, is_above=False),
    "dropped_tokens": _Words("tokens dropped by full experts", _SHARE, is_above=True),
    "unrouted_tokens": _Words("tokens without an expert", _SHARE, is_above=True),
    "vanishing_scores": _Words("tokens whose scores vanish", _SHARE, is_above=True),
    "router_logits": _Words("router logits that are not finite:", "{:.0f}".format, is_above=True),
    "loss_spike": _Words("loss over its median so far", "{:.2f}".format, is_above=True),
}


def _is_beyond(figure: Figure) -> bool:
    if _WORDS[figure.place.rule].is_above:
        return figure.value > figure.threshold
    return figure.value < figure.threshold
