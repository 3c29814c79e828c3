"""The `observe` section: what a run shows, when it raises an alarm and what it does then."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from moebius.config.fields import (
    FilledText,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    check_fields,
)
from moebius.errors import ConfigError

Action = Literal["off", "warn", "raise_aux", "nudge_bias", "revive", "roll_back", "stop"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An alarm on one figure of a layer, an expert or the loss.

    It fires when the figure has been beyond the threshold for `patience` steps, and again after
    each further `patience` steps.
    """

    threshold: NonNegativeFloat
    """Last harmless value of the figure."""
    window: PositiveInt = 1
    """Steps over which the logged figures are averaged. 1 means the logged step alone."""
    patience: NonNegativeInt = 50
    """Number of steps for which the figure must have been beyond the threshold."""
    action: Action = "warn"
    """What the run does. off: nothing. warn: prints a line. raise_aux: doubles the layer's
    load-balancing loss, up to 32 times, and takes that back once the figure is harmless again.
    nudge_bias: shifts the choice towards experts with little load. revive: replaces a dead expert
    by a copy of the busiest one, and never a healthy expert. roll_back: returns to the last
    checkpoint before, and leaves out the batches since. stop: saves and exits with code 5."""


@dataclass(frozen=True, kw_only=True)
class ObserveConfig:
    """What a run shows while it trains, and its alarms."""

    progress: bool = True
    """Show a live view on a terminal. Its lines for each logged step are printed with or without
    it."""
    tensorboard: bool = True
    """Also write the metrics for TensorBoard, into the run's folder tb/."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Also write the metrics for Weights & Biases (needs the extra wandb). online: upload them
    while the run goes on. offline: keep them in the run's folder wandb/ until `wandb sync`."""
    wandb_project: FilledText = "moebius"
    """Project of the run in Weights & Biases, where it has the name of its directory."""
    wandb_entity: str = ""
    """User or team that the project belongs to in Weights & Biases. Empty means your default."""
    sample_tokens: NonNegativeInt = 120
    """Largest number of tokens of the sample that the model writes at each evaluation. 0 means
    no samples."""

    cv: Rule = Rule(threshold=0.3, window=20, patience=100)
    """Fires when the coefficient of variation of a layer's tokens per expert is above the
    threshold. Like the next two alarms, it adds up the counts of logged steps until there are 25
    per expert, because fewer are uneven by chance. A layer with one expert has none of these
    alarms."""
    dead_expert: Rule = Rule(threshold=0.01)
    """Fires when an expert's share of its layer's load (the sum of its experts' tokens) is below
    the threshold and below a tenth of its even share, 1 / (10 * number of experts)."""
    dominant_expert: Rule = Rule(threshold=0.5)
    """Fires when the share of its layer's tokens that an expert takes is above the threshold and
    above 4/3 of its even share, experts per token / number of experts."""
    router_gradient: Rule = Rule(threshold=1e-6)
    """Fires when the norm of a router's gradient, divided by the norm of the whole gradient, is
    below the threshold. Not watched in a layer with one expert, and not while the experts of a
    layer are equal (train.common_start)."""
    routing_entropy: Rule = Rule(threshold=0.01)
    """Fires when the mean entropy of the tokens' probabilities, divided by its largest possible
    value, the logarithm of the number of experts, is below the threshold. Not watched in a layer
    with one expert."""
    dropped_tokens: Rule = Rule(threshold=0.2, window=20)
    """Fires when the share of the tokens that full experts drop is above the threshold (switch
    router)."""
    unrouted_tokens: Rule = Rule(threshold=0.5, window=20)
    """Fires when the share of the tokens that no expert takes is above the threshold (sigmoid
    router). With one expert, an untrained router leaves out half of the tokens, so the share must
    also be above 75%."""
    vanishing_scores: Rule = Rule(threshold=0.5)
    """Fires when the share of the tokens whose scores are all below 1e-7 is above the threshold
    (sigmoid scores). They no longer count beside a bias, and gates of that size mute the
    experts."""
    router_logits: Rule = Rule(threshold=0.0, patience=20, action="stop")
    """Fires when the number of router logits that are not finite is above the threshold."""
    loss_spike: Rule = Rule(threshold=1.5, window=200, patience=0)
    """Fires when a logged loss, divided by the median of those logged in the window before it, is
    above the threshold. There must be at least five in the window."""

    def __post_init__(self) -> None:
        check_fields("observe", self)
        for name, rule in self.rules().items():
            check_fields(f"observe.{name}", rule)
            if rule.action not in actions(name):
                raise ConfigError(
                    f"observe.{name}.action={rule.action!r}: this alarm's action must be one of "
                    f"{', '.join(actions(name))}"
                )

    def rules(self) -> dict[str, Rule]:
        """Return the rule of each alarm by name, in the order in which they are checked."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Rule)}


def actions(alarm: str) -> tuple[Action, ...]:
    """Return the actions that a run can take when the alarm of that name fires."""
    if alarm == "loss_spike":
        return ("off", "warn", "roll_back", "stop")
    if alarm in ("router_logits", "vanishing_scores"):
        return ("off", "warn", "stop")
    about_load = ("cv", "dead_expert", "dominant_expert", "routing_entropy")
    left_out = ("roll_back",) if alarm in about_load else ("roll_back", "revive")
    return tuple(action for action in get_args(Action) if action not in left_out)
