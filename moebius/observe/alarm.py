"""An alarm: what fired, about which layer and experts, and the lines that say so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moebius.config.observe import Action
from moebius.observe.figures import Place
from moebius.observe.metrics import StepMetrics

LISTED = 4
"""Largest number of experts or layers that a line names one by one."""


@dataclass(frozen=True)
class Alarm:
    """A rule that fired in a layer, or one that had fired and whose figure is harmless again.

    A rule about experts has one alarm for all experts of the layer for which it fires at a step.
    """

    step: int
    rule: str
    layer: int
    """Number of the layer; -1 for the model as a whole."""
    experts: tuple[int, ...]
    """Numbers of the experts, the worst one first; empty for the layer as a whole."""
    value: float
    """The figure that the rule watches; with several experts, that of the worst one."""
    threshold: float
    """The figure's last harmless value."""
    since: int
    """Last step at which the figure was harmless, or at which the alarm last fired; with several
    experts, the earliest of theirs."""
    action: Action
    """The configured action."""
    over: bool
    """Whether the alarm is over: the figure was harmless for as long as the rule's patience."""
    metrics: StepMetrics
    """The logged step that the alarm comes from."""
    load: list[int] | None = None
    """Tokens that each of the layer's experts took in as many logged steps as it takes to judge
    the load. None if it cannot be judged yet, or if the alarm is about the model."""
    remaining: int = 0
    """Number of other experts of the layer for which the rule has fired and is not over."""

    @property
    def place(self) -> Place:
        """The rule and the layer that the alarm is about."""
        return Place(self.rule, self.layer)

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
        """Return the alarm as an object for events.jsonl, with `figures`.

        `expert` is the worst of the `experts`, or -1 for an alarm about the whole layer.
        """
        names = ("value", "threshold", "since", "action", "over")
        return {
            "event": "over" if self.over else "alarm",
            "step": self.step,
            "rule": self.rule,
            "layer": self.layer,
            "expert": self.experts[0] if self.experts else -1,
            "experts": list(self.experts),
            **{name: getattr(self, name) for name in names},
            "figures": self.figures,
        }

    def __str__(self) -> str:
        who = f"layer {self.layer}" if self.layer >= 0 else ""
        if len(self.experts) > LISTED:
            who += f", {len(self.experts)} of {len(self.counts)} experts"
        elif self.experts:
            plural = "s" if len(self.experts) > 1 else ""
            who += f", expert{plural} {', '.join(map(str, sorted(self.experts)))}"
        return _line(self, who, len(self.experts) > 1)


def together(alarms: Sequence[Alarm]) -> str:
    """Return one line about alarms of one rule and step in several layers.

    All of them have fired, or all are over.
    """
    first = alarms[0]
    if len(alarms) == 1:
        return str(first)
    worst = (max if WORDS[first.rule].is_above else min)(alarms, key=lambda alarm: alarm.value)
    layers = sorted(alarm.layer for alarm in alarms)
    who = f"{len(layers)} layers, the worst is {worst.layer}"
    if len(layers) <= LISTED:
        who = f"layers {', '.join(map(str, layers))}"
    if num_experts := sum(len(alarm.experts) for alarm in alarms):
        who += f"; {num_experts:,} experts"
    return _line(worst, who, is_worst=True)


def _line(alarm: Alarm, who: str, is_worst: bool) -> str:
    """Return an alarm's line. `is_worst` says whether its figure is the worst of several."""
    words = WORDS[alarm.rule]
    value, threshold = (words.number(n) for n in (alarm.value, alarm.threshold))
    side = "above" if words.is_above else "below"
    if alarm.over:
        kind, end = "over", f"no longer {side} {threshold}"
    else:
        kind, end = "alarm", f"{side} {threshold} since step {alarm.since}"
    extreme = f"as {'high' if words.is_above else 'low'} as " if is_worst else ""
    who = f"{who}: " if who else ""
    return f"step {alarm.step}: {kind}: {who}{words.figure} {extreme}{value}, {end}"


class _Words(NamedTuple):
    """The words of an alarm's line."""

    figure: str
    number: Callable[[float], str]
    """Writes the figure and its threshold."""
    is_above: bool
    """Whether the rule fires above its threshold and not below it."""


def _percent(share: float) -> str:
    """Return a share as a percentage with three digits: a dead expert's may be far below 1%."""
    return f"{100 * share:.3g}%"


_SHARE = "{:.1%}".format
WORDS = {
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
"""The words of each rule."""
