"""Predict the time of a step with another configuration from a measured step."""

from collections.abc import Mapping

from moebius.config import Config
from moebius.cost.floor import Component, components
from moebius.profile.result import Profile

MOVING = ("dispatch", "activation", "combine")
"""Components whose time depends on how many rows are moved, even if not all of them are used."""
DECIDES_ROUTING = (
    "router_type",
    "router_top_k",
    "router_threshold",
    "num_experts",
    "num_layers",
    "use_mtp",
    "capacity_factor",
)
"""Fields of the model that decide how many experts a token has."""


def predicted_seconds(
    profile: Profile, config: Config, factors: Mapping[str, float] | None = None
) -> float:
    """Return the predicted seconds of a step of `config`, for as many tokens as the profiled step.

    A component keeps its efficiency: its predicted time is the measured time, times the ratio of
    its floors with and without the change. A component without a floor takes time in proportion to
    the tokens. The time that a GPU waits before a component stays the same, unless the component
    disappears. No step is shorter than the time in which the host launches all of its passes.

    factors: for components whose efficiency is known to change, the ratios to use instead.
    """
    before = components(profile.config, profile.item, profile.measured.experts_per_token)
    after = components(config, profile.item, _experts_per_token(profile, config))
    if profile.has_row_for_every_choice:
        before |= _moving(components(profile.config, profile.item))
        after |= _moving(components(config, profile.item))
    tokens, profiled_tokens = (
        each.train.batch_size * each.train.seq_len for each in (config, profile.config)
    )
    total = 0.0
    for name in {piece.component for piece in profile.measured.pieces}:
        if name in before:
            ratio = _ratio(profile, before[name], after.get(name))
        else:
            ratio = tokens / profiled_tokens
        factor = (factors or {}).get(name, ratio)
        waiting = profile.measured.of(name, "waiting")
        total += (profile.measured.of(name) - waiting) * factor + (waiting if factor else 0.0)
    passes = config.train.accumulation_steps
    profiled_passes = profile.config.train.accumulation_steps
    launching = profile.measured.host * passes / profiled_passes
    return max(total / profile.measured.covered, launching) * profiled_tokens / tokens


def _moving(costs: dict[str, Component]) -> dict[str, Component]:
    return {name: cost for name, cost in costs.items() if name in MOVING}


def _ratio(profile: Profile, before: Component, after: Component | None) -> float:
    """Return the ratio of a component's floors. It is 0 if the component disappears."""
    if after is None:
        return 0.0
    return _floor(profile, after) / _floor(profile, before)


def _floor(profile: Profile, cost: Component) -> float:
    return sum(work.seconds(*profile.limits) for work in (cost.forward, cost.backward))


def _experts_per_token(profile: Profile, config: Config) -> list[float] | None:
    """Return the measured experts per token, or None if the change affects them."""
    is_same = all(
        getattr(config.model, name) == getattr(profile.config.model, name)
        for name in DECIDES_ROUTING
    )
    return profile.measured.experts_per_token if is_same else None
