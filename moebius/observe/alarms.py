"""Alarms: rules held against every logged step. What they ask for is done elsewhere (moebius/train/actions.py)."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from moebius.rules import Action, ObserveConfig, Rule

FEWEST_LOSSES = 5  # before a loss that is held against their median


class Place(NamedTuple):
    """What an alarm is about. expert is -1 where it is the layer as a whole, layer where it is the model as a whole."""

    rule: str
    layer: int
    expert: int = -1


@dataclass(frozen=True)
class Alarm:
    """A rule that fired, or (over) one that had fired and whose figure has been back for the patience."""

    step: int
    rule: str
    layer: int
    expert: int
    value: float
    threshold: float
    since: int
    action: Action
    over: bool
    figures: dict[str, Any]

    @property
    def place(self) -> Place:
        return Place(self.rule, self.layer, self.expert)

    def event(self, done: str) -> dict[str, Any]:
        """The object for events.jsonl, with the figures that caused it."""
        return {"event": "over" if self.over else "alarm"} | asdict(self) | {"done": done}

    def __str__(self) -> str:
        who = f"layer {self.layer}: " if self.layer >= 0 else ""
        who = f"layer {self.layer}, expert {self.expert}: " if self.expert >= 0 else who
        what, unit = _WORDS[self.rule]
        value, threshold = (unit.format(number) for number in (self.value, self.threshold))
        side = "above" if self.rule in _ABOVE else "below"
        if self.over:
            return f"step {self.step}: over: {who}{what} {value}, no longer {side} {threshold}"
        return f"step {self.step}: alarm: {who}{what} {value}, {side} {threshold} since step {self.since}"


class Alarms:
    """All rules of a run and what they have seen so far: part of its resumable state."""

    def __init__(self, config: ObserveConfig):
        self.rules = {name: rule for name, rule in config.rules().items() if rule.action != "off"}
        self.seen: dict[Place, list[tuple[int, float]]] = defaultdict(list)  # logged figures inside the rule's window
        self.fine_at: dict[Place, int] = {}  # last step at which the figure was harmless, or fired
        self.beyond_at: dict[Place, int] = {}  # of what has fired: last step at which it was beyond the threshold

    def look(self, metrics: dict[str, Any]) -> list[Alarm]:
        """What a logged step gives rise to, in the order of the rules."""
        step = metrics["step"]
        found: list[Alarm] = []
        for name, rule in self.rules.items():
            for place, value in _figures(name, rule, metrics):
                figure = self._over_window(place, rule, step, value)
                if _is_beyond(name, rule, figure):
                    found += self._beyond(place, rule, step, figure, metrics)
                else:
                    found += self._harmless(place, rule, step, figure, metrics)
        return found

    def keep_watching(self, alarm: Alarm) -> None:
        """Report again when the figure has been back for another patience: something is left to be undone."""
        self.beyond_at[alarm.place] = alarm.step

    def state(self) -> dict[str, Any]:
        """For a checkpoint's JSON."""
        return {
            "seen": [[*place, steps] for place, steps in self.seen.items()],
            "fine_at": [[*place, step] for place, step in self.fine_at.items()],
            "beyond_at": [[*place, step] for place, step in self.beyond_at.items()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.seen = defaultdict(list, {Place(*place): [(s, v) for s, v in steps] for *place, steps in state["seen"]})
        self.fine_at = {Place(*place): step for *place, step in state["fine_at"]}
        self.beyond_at = {Place(*place): step for *place, step in state["beyond_at"]}

    def _over_window(self, place: Place, rule: Rule, step: int, value: float) -> float:
        """The mean over the window; of a loss, how many times the median before it."""
        if rule.window == 1 and place.rule != "loss_spike":
            return value
        before = [(when, figure) for when, figure in self.seen[place] if step - rule.window < when < step]
        figures = [figure for _, figure in before]
        if math.isfinite(value):
            self.seen[place] = [*before, (step, value)]
        if place.rule == "loss_spike":
            return value / statistics.median(figures) if len(figures) >= FEWEST_LOSSES else 1.0
        return (sum(figures) + value) / (len(figures) + 1)

    def _beyond(self, place: Place, rule: Rule, step: int, value: float, metrics: dict[str, Any]) -> Iterator[Alarm]:
        if place in self.beyond_at:
            self.beyond_at[place] = step
        # a figure that was harmless when last looked at may have gone beyond right after
        since = self.fine_at.setdefault(place, 0)
        if step - since >= rule.patience:
            self.fine_at[place] = self.beyond_at[place] = step
            yield self._alarm(place, rule, step, value, since, metrics, over=False)

    def _harmless(self, place: Place, rule: Rule, step: int, value: float, metrics: dict[str, Any]) -> Iterator[Alarm]:
        self.fine_at[place] = step
        if place in self.beyond_at and step - self.beyond_at[place] >= rule.patience:
            since = self.beyond_at.pop(place)
            yield self._alarm(place, rule, step, value, since, metrics, over=True)

    def _alarm(
        self, place: Place, rule: Rule, step: int, value: float, since: int, metrics: dict[str, Any], over: bool
    ) -> Alarm:
        names = ("tokens_per_expert", "cv", "max_violation", "routing_entropy", "router_grad_norm")
        if place.layer < 0:
            figures = {name: metrics[name] for name in ("loss", "grad_norm", "lr")}
        else:
            figures = {name: metrics[name][place.layer] for name in names if name in metrics}
        return Alarm(step, place.rule, place.layer, place.expert, value, rule.threshold, since, rule.action, over, figures)


_ABOVE = {"cv", "dominant_expert", "dropped_tokens", "unrouted_tokens", "router_logits", "loss_spike"}
_WORDS = {
    "cv": ("CV of the load", "{:.2f}"),
    "dead_expert": ("share of the layer's tokens", "{:.1%}"),
    "dominant_expert": ("share of the layer's tokens", "{:.1%}"),
    "router_gradient": ("router's share of the gradient norm", "{:.1e}"),
    "routing_entropy": ("entropy of the routing", "{:.3f}"),
    "dropped_tokens": ("tokens dropped by full experts", "{:.1%}"),
    "unrouted_tokens": ("tokens without an expert", "{:.1%}"),
    "router_logits": ("router logits that are not finite:", "{:.0f}"),
    "loss_spike": ("loss over its median so far", "{:.2f}"),
}


def _is_beyond(name: str, rule: Rule, value: float) -> bool:
    return value > rule.threshold if name in _ABOVE else value < rule.threshold


def _figures(name: str, rule: Rule, metrics: dict[str, Any]) -> Iterator[tuple[Place, float]]:
    """A rule's figure for each layer (or expert) that has one, or for the model."""
    if name == "loss_spike":
        yield Place(name, -1), metrics["loss"]
        return
    for layer, counts in enumerate(metrics["tokens_per_expert"]):
        if not counts:
            continue
        total = sum(counts)
        if name in ("dead_expert", "dominant_expert"):
            if name == "dominant_expert" and rule.threshold * len(counts) <= 1:
                continue  # an even share is as much
            for expert, count in enumerate(counts):
                yield Place(name, layer, expert), count / total if total else math.nan
        else:
            yield Place(name, layer), _of_layer(name, metrics, layer)


def _of_layer(name: str, metrics: dict[str, Any], layer: int) -> float:
    if name == "router_gradient":
        whole = metrics["grad_norm"]
        return metrics["router_grad_norm"][layer] / whole if whole else math.nan
    return metrics[_METRICS[name]][layer]


_METRICS = {
    "cv": "cv",
    "routing_entropy": "routing_entropy",
    "dropped_tokens": "dropped_share",
    "unrouted_tokens": "unrouted_share",
    "router_logits": "not_finite_logits",
}
