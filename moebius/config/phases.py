"""The phases of a run: parts, by tokens, with a learning rate, batches and mixture of their own.

In a TOML file, each phase is a table `[[train.phases]]`. Warm-up, stable and decay are three:

    [[train.phases]]
    until = 1e9
    schedule = "linear"        # from 0 to train.lr
    [[train.phases]]
    until = 18e9               # stays at train.lr
    [[train.phases]]
    until = 20e9
    schedule = "linear"
    lr_fraction = 0.1
    weights = [0.3, 0.7]       # the annealing mixture
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from moebius.config.data import DataConfig
from moebius.config.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    annotations,
    at_least,
    check_fields,
    divisors,
    shown,
)
from moebius.config.suggestions import nearest
from moebius.errors import ConfigError

REPLACED = ("steps", "schedule", "warmup_steps", "decay_fraction", "min_lr_fraction")
"""Settings of `train` that follow from the phases, if there are any."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Phase:
    """A part of a run. It begins where the phase before it ends, or with the run."""

    until: PositiveInt
    """Tokens of the run, from its beginning, at which the phase ends. Its last step is the first
    one that reaches them."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate within the phase: constant is lr_fraction throughout; linear and cosine go
    there from where the phase before ended, in the first phase from 0."""
    lr_fraction: NonNegativeFloat = 1.0
    """Learning rate at the end of the phase, as a share of train.lr."""
    batch_size: NonNegativeInt = 0
    """Sequences per step. 0 means train.batch_size."""
    micro_batch_size: NonNegativeInt = 0
    """Sequences per forward pass. 0 means train.micro_batch_size, or the whole batch if that
    is 0 or does not divide it."""
    seq_len: NonNegativeInt = 0
    """Tokens per sequence. 0 means train.seq_len."""
    weights: Annotated[float | tuple[float, ...], at_least(0)] = 0.0
    """Each source's share of the training sequences, as in data.weights. 0 means data.weights."""

    def __post_init__(self) -> None:
        check_fields("train.phases", self)
        if isinstance(self.weights, tuple) and not any(self.weights):
            raise ConfigError(
                f"train.phases.weights={shown(self.weights)}: not all may be 0; leave it out for "
                "data.weights"
            )
        if self.batch_size and self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"train.phases.micro_batch_size={self.micro_batch_size}: must divide batch_size "
                f"({self.batch_size}); one of {divisors(self.batch_size)}"
            )

    def __repr__(self) -> str:
        """Return the phase as a TOML table in one line, without what has its default."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own = {
            f.name: values[f.name]
            for f in dataclasses.fields(self)
            if f.default is dataclasses.MISSING or values[f.name] != f.default
        }
        return "{" + ", ".join(f"{name} = {shown(value)}" for name, value in own.items()) + "}"


def phases_of(value: Any) -> Any:
    """Return the phases of a setting's value: a list of tables becomes a tuple of phases.

    Anything else is returned as it is; the check of the settings then refuses it. Raises
    ConfigError, which names the phase by its number, for a table that is no phase.
    """
    if not isinstance(value, list | tuple):
        return value
    return tuple(
        _phase(item, f"train.phases[{number}]") if isinstance(item, dict) else item
        for number, item in enumerate(value, start=1)
    )


def _phase(values: dict[str, Any], path: str) -> Phase:
    names = list(annotations(Phase))
    for name in values:
        if name not in names:
            hint = nearest(name, names) or f"; a phase has {', '.join(names)}"
            raise ConfigError(f"{path}.{name}: no such setting{hint}")
    if "until" not in values:
        raise ConfigError(f"{path}: until is missing, the tokens at which the phase ends")
    try:
        return Phase(**values)
    except ConfigError as error:
        raise ConfigError(str(error).replace("train.phases", path, 1)) from None


def check_phases(phases: Iterable[Phase], default_batch_size: int) -> None:
    """Raise ConfigError for phases that end before they begin, or cannot be cut into batches."""
    begin = 0
    for number, phase in enumerate(phases, start=1):
        if phase.until <= begin:
            raise ConfigError(
                f"train.phases[{number}].until={phase.until}: ends before it begins, because the "
                f"phase before it ends at {begin} tokens"
            )
        batch_size, micro = phase.batch_size or default_batch_size, phase.micro_batch_size
        if micro and batch_size % micro:
            raise ConfigError(
                f"train.phases[{number}].micro_batch_size={micro}: must divide the batch size "
                f"({batch_size}); one of {divisors(batch_size)}"
            )
        begin = phase.until


def check_weights(phases: Iterable[Phase], data: DataConfig) -> None:
    """Raise ConfigError for a phase whose weights do not fit the sources."""
    num_sources = len(data.source.split(","))
    for number, phase in enumerate(phases, start=1):
        if not isinstance(phase.weights, tuple):
            continue
        name = f"train.phases[{number}].weights={shown(phase.weights)}"
        if len(phase.weights) != num_sources:
            raise ConfigError(f"{name}: must be one number for each of the {num_sources} sources")
        for source, (weight, own) in enumerate(
            zip(phase.weights, weights_per_source(data), strict=True), start=1
        ):
            if weight and not own:
                raise ConfigError(
                    f"{name}: source {source} is not prepared, because data.weights gives it 0; "
                    "give it a weight there, with which it counts in evaluations"
                )


def weights_per_source(data: DataConfig) -> tuple[float, ...]:
    """Return the weight of each source."""
    if isinstance(data.weights, tuple):
        return data.weights
    return (data.weights,) * len(data.source.split(","))
