"""What a run watches in its routing, when it speaks up and what it does then."""

from dataclasses import dataclass, fields
from typing import Literal

from moebius.errors import ConfigError
from moebius.fields import at_least, check_fields

Action = Literal["off", "warn", "raise_aux", "nudge_bias", "revive", "roll_back", "stop"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An alarm. It fires for a layer (or an expert) when its figure has been beyond the threshold for `patience` steps, and
    again after each further `patience` steps of that."""

    threshold: float
    """The figure's last harmless value."""
    window: int = 1
    """Steps over whose logged figures the mean is taken; 1: the logged step alone."""
    patience: int = 50
    """Steps for which the figure must have been beyond the threshold."""
    action: Action = "warn"
    """off; warn; raise_aux: up to 32 times the layer's balance loss, relaxed when the figure is back; nudge_bias: shift the
    choice towards experts with little load; revive: replace the expert by a copy of the busiest; roll_back: to the last
    checkpoint before, leaving out the batches since; stop: save and exit with 5."""


# an action that moves load between experts can answer these; the others are told or stopped
_OF_LOAD = ("cv", "dead_expert", "dominant_expert", "routing_entropy")
_ANY: tuple[Action, ...] = ("off", "warn", "raise_aux", "nudge_bias", "revive", "stop")
_BY_LOSS_OR_BIAS: tuple[Action, ...] = ("off", "warn", "raise_aux", "nudge_bias", "stop")
_BY_HAND: tuple[Action, ...] = ("off", "warn", "stop")
_OF_A_SPIKE: tuple[Action, ...] = ("off", "warn", "roll_back", "stop")


@dataclass(frozen=True, kw_only=True)
class ObserveConfig:
    """What a run shows while it goes, and its alarms."""

    progress: bool = True
    """A progress bar on a terminal; a line per logged step elsewhere."""
    tensorboard: bool = True
    """Also write the metrics for TensorBoard, in the run's tb/."""

    cv: Rule = Rule(threshold=0.3, window=20, patience=100)
    """Above: the layer's load is uneven (coefficient of variation of the tokens per expert)."""
    dead_expert: Rule = Rule(threshold=0.01)
    """Below: an expert's share of its layer's tokens."""
    dominant_expert: Rule = Rule(threshold=0.5)
    """Above: an expert's share of its layer's tokens. Not watched where an even share is as much."""
    router_gradient: Rule = Rule(threshold=1e-6)
    """Below: the norm of a router's gradient over that of the whole gradient."""
    routing_entropy: Rule = Rule(threshold=0.01)
    """Below: mean entropy of a token's probabilities over its greatest value, log of the number of experts."""
    dropped_tokens: Rule = Rule(threshold=0.2, window=20)
    """Above: share of the tokens that full experts drop (switch)."""
    unrouted_tokens: Rule = Rule(threshold=0.5, window=20)
    """Above: share of the tokens that no expert takes (sigmoid)."""
    router_logits: Rule = Rule(threshold=0.0, patience=20, action="stop")
    """Above: number of router logits that are not finite."""
    loss_spike: Rule = Rule(threshold=1.5, window=200, patience=0)
    """Above: a logged loss over the median of those logged in the window before it, where there are five or more."""

    def __post_init__(self) -> None:
        check_fields("observe", self)
        for name, rule in self.rules().items():
            where = f"observe.{name}"
            check_fields(where, rule)
            for number in ("threshold", "patience"):
                at_least(where, rule, number, 0)
            at_least(where, rule, "window", 1)
            if rule.action not in _actions(name):
                raise ConfigError(f"{where}.action={rule.action!r}: one of {', '.join(_actions(name))} can answer this alarm")

    def rules(self) -> dict[str, Rule]:
        """The alarms by name, in the order in which they are looked at."""
        return {each.name: value for each in fields(self) if isinstance(value := getattr(self, each.name), Rule)}


def _actions(name: str) -> tuple[Action, ...]:
    if name in _OF_LOAD:
        return _ANY
    return {"router_logits": _BY_HAND, "loss_spike": _OF_A_SPIKE}.get(name, _BY_LOSS_OR_BIAS)
