"""Alarms: rules that are applied to every logged step.

This file only decides which alarms fire. What is done about them is in moebius/train/actions.py.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from moebius.config.observe import Action, ObserveConfig, Rule
from moebius.observe.metrics import LayerMetrics, StepMetrics

FEWEST_LOSSES = 5  # losses that must precede a loss before it is compared with their median


class Place(NamedTuple):
    """What an alarm is about."""

    rule: str
    """Name of the rule."""
    layer: int
    """Number of the layer; -1 for the model as a whole."""
    expert: int = -1
    """Number of the expert; -1 for the layer as a whole."""


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

    @property
    def place(self) -> Place:
        """The rule, layer and expert that the alarm is about."""
        return Place(self.rule, self.layer, self.expert)

    @property
    def counts(self) -> list[int]:
        """Tokens that each of the layer's experts took. Only for an alarm about a layer."""
        return self.metrics.layers[self.layer].tokens_per_expert

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
        value, threshold = (words.number.format(n) for n in (self.value, self.threshold))
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

    def look(self, metrics: StepMetrics) -> list[Alarm]:
        """Return the alarms that fire or end at a logged step, in the order of the rules."""
        alarms: list[Alarm] = []
        for name, rule in self.rules.items():
            for place, figure in _figures(name, rule, metrics):
                value = self._over_window(place, rule, metrics.step, figure)
                if _is_beyond(name, rule, value):
                    alarms += self._beyond(place, rule, value, metrics)
                else:
                    alarms += self._harmless(place, rule, value, metrics)
        return alarms

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
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        seen = {Place(*place): [(s, v) for s, v in steps] for *place, steps in state["seen"]}
        self.seen = defaultdict(list, seen)
        self.fine_at = {Place(*place): step for *place, step in state["fine_at"]}
        self.beyond_at = {Place(*place): step for *place, step in state["beyond_at"]}

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

    def _beyond(
        self, place: Place, rule: Rule, value: float, metrics: StepMetrics
    ) -> Iterator[Alarm]:
        step = metrics.step
        if place in self.beyond_at:
            self.beyond_at[place] = step
        # The figure may have crossed the threshold right after the last step at which it was
        # harmless.
        since = self.fine_at.setdefault(place, 0)
        if step - since >= rule.patience:
            self.fine_at[place] = self.beyond_at[place] = step
            yield _alarm(place, rule, value, since, metrics, over=False)

    def _harmless(
        self, place: Place, rule: Rule, value: float, metrics: StepMetrics
    ) -> Iterator[Alarm]:
        step = metrics.step
        self.fine_at[place] = step
        if place in self.beyond_at and step - self.beyond_at[place] >= rule.patience:
            since = self.beyond_at.pop(place)
            yield _alarm(place, rule, value, since, metrics, over=True)


def _alarm(
    place: Place, rule: Rule, value: float, since: int, metrics: StepMetrics, over: bool
) -> Alarm:
    return Alarm(metrics.step, *place, value, rule.threshold, since, rule.action, over, metrics)


class _Words(NamedTuple):
    """The words of an alarm's line."""

    figure: str
    number: str
    """Format of the figure and its threshold."""
    is_above: bool
    """Whether the rule fires above its threshold and not below it."""


_WORDS = {
    "cv": _Words("CV of the load", "{:.2f}", is_above=True),
    "dead_expert": _Words("share of the layer's tokens", "{:.1%}", is_above=False),
    "dominant_expert": _Words("share of the layer's tokens", "{:.1%}", is_above=True),
    "router_gradient": _Words("router's share of the gradient norm", "{:.1e}", is_above=False),
    "routing_entropy": _Words("entropy of the routing", "{:.3f}", is_above=False),
    "dropped_tokens": _Words("tokens dropped by full experts", "{:.1%}", is_above=True),
    "unrouted_tokens": _Words("tokens without an expert", "{:.1%}", is_above=True),
    "router_logits": _Words("router logits that are not finite:", "{:.0f}", is_above=True),
    "loss_spike": _Words("loss over its median so far", "{:.2f}", is_above=True),
}


def _is_beyond(name: str, rule: Rule, value: float) -> bool:
    return value > rule.threshold if _WORDS[name].is_above else value < rule.threshold


def _figures(name: str, rule: Rule, metrics: StepMetrics) -> Iterator[tuple[Place, float]]:
    """Yield a rule's figure for every place that has one: the model, a layer or an expert."""
    if name == "loss_spike":
        yield Place(name, -1), metrics.loss
        return
    for number, layer in metrics.routed_layers:
        if name in ("dead_expert", "dominant_expert"):
            counts = layer.tokens_per_expert
            if name == "dominant_expert" and rule.threshold * len(counts) <= 1:
                continue  # even a perfectly balanced load would be above the threshold
            total = sum(counts)
            for expert, count in enumerate(counts):
                yield Place(name, number, expert), count / total if total else math.nan
        elif name == "router_gradient":
            whole, own = metrics.grad_norm, layer.router_grad_norm
            yield Place(name, number), own / whole if whole and own is not None else math.nan
        else:
            yield Place(name, number), _nan_for_none(_LAYER_FIGURES[name](layer))


_LAYER_FIGURES: dict[str, Callable[[LayerMetrics], float | None]] = {
    "cv": lambda layer: layer.cv,
    "routing_entropy": lambda layer: layer.routing_entropy,
    "dropped_tokens": lambda layer: layer.dropped_share,
    "unrouted_tokens": lambda layer: layer.unrouted_share,
    "router_logits": lambda layer: layer.not_finite_logits,
}


def _nan_for_none(figure: float | None) -> float:
    return math.nan if figure is None else figure
