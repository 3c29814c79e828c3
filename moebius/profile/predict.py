"""What a step would take with another configuration, from one that was measured."""

from collections.abc import Mapping

from moebius.config import Config
from moebius.profile.floor import Component, components
from moebius.profile.report import Profile

MOVING = ("dispatch", "activation", "combine")


def predicted_seconds(profile: Profile, config: Config, factors: Mapping[str, float] | None = None) -> float:
    """Each component takes what it took, times how its floor changes: it keeps its efficiency. `factors` are for components
    whose efficiency is known to change. What has no floor goes with the tokens. What a GPU waits before a component stays,
    unless that goes altogether. No step is shorter than its launching takes the host, pass by pass. Seconds for as many tokens
    as the measured step had."""
    before = components(profile.config, profile.item, profile.measured.experts_per_token)
    after = components(config, profile.item, _experts_per_token(profile, config))
    if profile.has_row_for_every_choice:
        before |= _only(MOVING, components(profile.config, profile.item))
        after |= _only(MOVING, components(config, profile.item))
    tokens, own = (each.train.batch_size * each.train.seq_len for each in (config, profile.config))
    total = 0.0
    for name in {piece.component for piece in profile.measured.pieces}:
        ratio = _ratio(profile, before[name], after.get(name)) if name in before else tokens / own
        factor = (factors or {}).get(name, ratio)
        waiting = profile.measured.of(name, "waiting")
        total += (profile.measured.of(name) - waiting) * factor + (waiting if factor else 0.0)
    passes, own_passes = config.train.accumulation_steps, profile.config.train.accumulation_steps
    launching = profile.measured.host * passes / own_passes
    return max(total / profile.measured.covered, launching) * own / tokens


def _only(names: tuple[str, ...], found: dict[str, Component]) -> dict[str, Component]:
    return {name: each for name, each in found.items() if name in names}


def _ratio(profile: Profile, before: Component, after: Component | None) -> float:
    if after is None:
        return 0.0
    floors = [sum(work.seconds(*profile.limits) for work in (each.forward, each.backward)) for each in (before, after)]
    return floors[1] / floors[0]


def _experts_per_token(profile: Profile, config: Config) -> list[float] | None:
    """Measured, if nothing that decides it changes."""
    deciding = ("router_type", "router_top_k", "router_threshold", "num_experts", "num_layers", "use_mtp", "capacity_factor")
    same = all(getattr(config.model, name) == getattr(profile.config.model, name) for name in deciding)
    return profile.measured.experts_per_token if same else None
