"""Recommend a layout: estimate all layouts that fit into memory, and choose the best one."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from moebius.config import Config, ModelConfig
from moebius.config.in_phases import largest_phase
from moebius.cost.device import Device
from moebius.cost.layouts import FILLED, Layout, Planned, fits, layouts, needed_memory, planned
from moebius.cost.units import byte_size
from moebius.errors import ConfigError

NEARLY_AS_FAST = 1.02
"""A simpler layout is preferred if its step takes at most this many times as long as the
fastest."""
MOST_GPUS = 1 << 14
"""Largest number of GPUs that is suggested for a run that does not fit."""
LARGEST_CLUSTER = 1_000_000
"""Largest number of GPUs that is planned for."""


@dataclass(frozen=True)
class Plan:
    """The recommended layout of a run, and the alternatives."""

    config: Config
    """The run, with a batch that its devices can share evenly."""
    device: Device
    imbalance: float
    """Load of the busiest expert, divided by an even load."""
    best: Planned
    """The recommended layout."""
    others: list[Planned]
    """The fastest layout of every other kind that fits into memory, ordered from fast to slow."""
    largest_sequences: int
    """Largest number of sequences in one pass on one device that would still fit."""
    asked_batch_size: int
    """`train.batch_size` as the user configured it."""


def plan(config: Config, device: Device, gpus: int, imbalance: float = 1.0) -> Plan:
    """Return the plan of a run on that many devices.

    With phases, it is that of the largest one. A batch that the devices cannot share evenly is
    enlarged. imbalance is the load of the busiest expert, divided by an even load. Raises
    ConfigError, which says what would help, if no layout fits.
    """
    if not 1 <= gpus <= LARGEST_CLUSTER:
        raise ConfigError(f"--gpus {gpus}: must be from 1 to {LARGEST_CLUSTER}")
    _check_imbalance(config.model, imbalance)
    config = largest_phase(config)
    asked_batch_size = config.train.batch_size
    config = replace(config, train=replace(config.train, micro_batch_size=0))  # layouts choose it
    config = _with_batch_size(config, -(-asked_batch_size // gpus) * gpus)
    needed = {
        layout: needed_memory(config, device, layout, imbalance)
        for layout in layouts(config, gpus)
    }
    fitting = [layout for layout, memory in needed.items() if fits(memory, device)]
    if not fitting:
        smallest = min(memory.peak for memory in needed.values())
        raise ConfigError(_too_large(config, device, gpus, smallest))
    of_each_kind = _fastest_of_each_kind(
        planned(config, device, layout, imbalance) for layout in fitting
    )
    best = _plainest_of_the_fast(of_each_kind)
    return Plan(
        config,
        device,
        imbalance,
        best,
        others=[candidate for candidate in of_each_kind if candidate is not best],
        largest_sequences=_largest_sequences(config, device, best.layout, imbalance),
        asked_batch_size=asked_batch_size,
    )


def _check_imbalance(model: ModelConfig, imbalance: float) -> None:
    """Raise ConfigError for a load that no expert can have."""
    counts = [count for count in model.experts_per_layer if count]
    highest = max((count / model.experts_per_token(count) for count in counts), default=math.inf)
    if not 1 <= imbalance < math.inf or imbalance > highest:
        limit = f"from 1 to {highest:g}" if highest < math.inf else "of at least 1"
        raise ConfigError(
            f"--imbalance {imbalance:g}: must be a number {limit}; it is the load of the busiest "
            "expert over an even load, and no expert has more than every token"
        )


def _with_batch_size(config: Config, batch_size: int) -> Config:
    return replace(config, train=replace(config.train, batch_size=batch_size))


def _fastest_of_each_kind(candidates: Iterable[Planned]) -> list[Planned]:
    """Return the fastest candidate of each kind of layout, ordered from fast to slow.

    Layouts of one kind differ only in how they divide sequences into passes.
    """
    fastest: dict[tuple[object, ...], Planned] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.seconds):
        layout = candidate.layout
        kind = (layout.recomputing, layout.is_sharded, layout.expert_parallel)
        fastest.setdefault(kind, candidate)
    return list(fastest.values())


def _plainest_of_the_fast(candidates: list[Planned]) -> Planned:
    """Return the simplest of the candidates that are nearly as fast as the fastest one."""
    limit = NEARLY_AS_FAST * min(candidate.seconds for candidate in candidates)
    fast = [candidate for candidate in candidates if candidate.seconds <= limit]
    return min(fast, key=lambda candidate: _complexity(candidate.layout))


def _complexity(layout: Layout) -> tuple[bool, int, bool]:
    return layout.recomputing != "none", layout.expert_parallel, layout.is_sharded


def _largest_sequences(config: Config, device: Device, layout: Layout, imbalance: float) -> int:
    """Return how many sequences fit into one pass, with as many passes as the layout has."""

    def has_room(sequences: int) -> bool:
        changed = replace(layout, sequences=sequences)
        return fits(needed_memory(config, device, changed, imbalance), device)

    fitting, too_many = layout.sequences, layout.sequences + 1
    while has_room(too_many):
        fitting, too_many = too_many, 2 * too_many
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if has_room(middle):
            fitting = middle
        else:
            too_many = middle
    return fitting


def _too_large(config: Config, device: Device, gpus: int, smallest: float) -> str:
    """Return the error for a run that fits in no layout: what is missing, and what would help.

    `smallest` is the least memory that any layout needs.
    """
    available = byte_size(FILLED * device.memory)
    text = (
        f"{gpus} x {device.name}: at least {byte_size(smallest)} are needed on each "
        f"GPU, but only {available} can be used"
    )
    while gpus < MOST_GPUS:
        gpus *= 2
        divisible = -(-config.train.batch_size // gpus) * gpus
        grown = _with_batch_size(config, divisible)
        memories = (needed_memory(grown, device, layout) for layout in layouts(grown, gpus))
        if any(fits(memory, device) for memory in memories):
            return f"{text}; use --gpus {gpus}"
    return f"{text}; use a shorter --train.seq_len or a smaller model"
