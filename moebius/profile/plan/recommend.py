"""`moebius plan`: what a run would need and how long it would take on GPUs that need not be there."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from moebius.config import Config
from moebius.cost import active_parameters, parameters
from moebius.errors import ConfigError
from moebius.memory import Memory
from moebius.profile.devices import Device
from moebius.profile.plan.estimate import experts_per_token
from moebius.profile.plan.layouts import FILLED, Layout, Planned, layouts, planned

SAME = 1.02  # a plainer layout that takes at most this much longer is preferred
SHOWN = 6


@dataclass(frozen=True)
class Plan:
    """best: the layout to use. others: of each kind that fits, its fastest. largest: sequences on one device in one pass that
    would still fit. asked: the batch that was asked for, if it had to grow to be divided."""

    config: Config
    device: Device
    imbalance: float
    best: Planned
    others: list[Planned]
    largest: int
    asked: int


def plan(config: Config, device: Device, gpus: int, imbalance: float = 1.0) -> Plan:
    """Raises ConfigError, with what would do, if the run fits in no layout."""
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus}: at least 1")
    if not 1 <= imbalance < math.inf:
        raise ConfigError(f"--imbalance {imbalance:g}: the busiest expert's load over an even one, at least 1")
    asked = config.train.batch_size
    divided = math.ceil(asked / gpus) * gpus
    config = replace(config, train=replace(config.train, batch_size=divided, micro_batch_size=0))
    every = [planned(config, device, layout, imbalance) for layout in layouts(config, gpus)]
    fitting = [each for each in every if each.fits]
    if not fitting:
        raise ConfigError(_too_large(config, device, min(every, key=lambda each: each.memory.peak)))
    kinds: dict[tuple[object, ...], Planned] = {}
    for each in sorted(fitting, key=lambda each: each.seconds):
        kinds.setdefault((each.layout.recomputing, each.layout.is_sharded, each.layout.expert_parallel), each)
    fastest = min(kinds.values(), key=lambda each: each.seconds)
    best = next(
        each for each in kinds.values() if each.seconds <= SAME * fastest.seconds and _is_plainest(each, kinds, fastest)
    )
    others = [each for each in kinds.values() if each is not best]
    return Plan(config, device, imbalance, best, others, _largest(config, device, best.layout, imbalance), asked)


def lines(found: Plan) -> list[str]:
    """For the terminal."""
    best, layout, device, model = found.best, found.best.layout, found.device, found.config.model
    gpus = f"{layout.gpus} x {device.name}" if layout.gpus > 1 else device.name
    tokens = found.config.train.batch_size * found.config.train.seq_len
    counts, active = parameters(model), active_parameters(model, experts_per_token(model))
    grown = f", {found.asked} as configured does not divide" if found.asked != found.config.train.batch_size else ""
    largest = f" (up to {found.largest} would fit)" if found.largest > layout.sequences else ""
    text = [
        f"parameters  {_short(sum(counts.values()))}, {_short(active)} active per token",
        f"on          {gpus}: {_short(device.flops)}FLOP/s, {_short(device.bytes)}B/s, {device.memory / 1e9:.0f} GB each "
        f"({device.source})",
        f"batch       {found.config.train.batch_size} x {found.config.train.seq_len} = {tokens:,} tokens{grown}; on each GPU "
        f"{layout.sequences} sequence{'s' if layout.sequences > 1 else ''} in a pass{largest}, {layout.passes} "
        f"pass{'es' if layout.passes > 1 else ''} a step",
        f"layout      {layout}",
        *(f"            {reason}" for reason in _reasons(found)),
        f"memory      {best.memory.peak / 1e9:.1f} of {device.memory / 1e9:.0f} GB: {_gigabytes(best.memory)}",
        f"step        {best.seconds * 1e3:,.1f} ms, {best.tokens_per_second:,.0f} tokens/s, MFU {best.mfu:.1%}: "
        + ", ".join(f"{name.replace('_', ' ')} {took * 1e3:.1f}" for name, took in _sorted(best.computing)),
    ]
    if best.sent:
        sent = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in _sorted(best.sent))
        text.append(f"network     each GPU sends {sent} in a step; {best.communicating * 1e3:.1f} ms of it nothing hides")
    if found.others:
        text += ["", "other layouts that fit"]
        text += [
            f"  {each.seconds * 1e3:9,.1f} ms {each.memory.peak / 1e9:7.1f} GB  {each.layout}" for each in found.others[:SHOWN]
        ]
    text += ["", *_notes(found)]
    return text


def as_json(found: Plan) -> str:
    """Seconds, bytes and FLOPs."""
    return json.dumps(
        {
            "device": asdict(found.device),
            "imbalance": found.imbalance,
            "batch_size": found.config.train.batch_size,
            "largest_sequences": found.largest,
            "parameters": parameters(found.config.model),
            "best": _values(found.best),
            "others": [_values(each) for each in found.others],
        },
        indent=1,
    )


def _is_plainest(each: Planned, kinds: dict[tuple[object, ...], Planned], fastest: Planned) -> bool:
    """Of those about as fast as the fastest."""
    as_fast = [other for other in kinds.values() if other.seconds <= SAME * fastest.seconds]
    return each is min(as_fast, key=lambda other: _complexity(other.layout))


def _complexity(layout: Layout) -> tuple[bool, int, bool]:
    return layout.recomputing != "none", layout.expert_parallel, layout.is_sharded


def _largest(config: Config, device: Device, layout: Layout, imbalance: float) -> int:
    """Sequences of one pass that fit, the passes as many as planned."""
    fits = lambda count: planned(config, device, replace(layout, sequences=count), imbalance).fits  # noqa: E731
    low, high = layout.sequences, layout.sequences + 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _too_large(config: Config, device: Device, smallest: Planned) -> str:
    """What is missing, and what would do."""
    gpus, needed = smallest.layout.gpus, smallest.memory.peak
    has = FILLED * device.memory / 1e9
    text = f"{gpus} x {device.name}: at least {needed / 1e9:.1f} GB are needed on each, and {has:.1f} can be used"
    more = gpus
    while more < 1 << 14:
        more *= 2
        grown = replace(config, train=replace(config.train, batch_size=math.ceil(config.train.batch_size / more) * more))
        if any(planned(grown, device, layout).fits for layout in layouts(grown, more)):
            return f"{text}; --gpus {more} would do"
    return f"{text}; a shorter --train.seq_len or a smaller model would do"


def _reasons(found: Plan) -> Iterator[str]:
    """Why this layout, from the best that is otherwise."""
    best, layout = found.best, found.best.layout
    if layout.gpus == 1 and layout.recomputing == "none":
        yield "because it fits: nothing has to be computed again"
    for name, differs in (
        ("a copy of the weights on each GPU", lambda other: layout.is_sharded and not other.is_sharded),
        ("sharding the weights", lambda other: other.is_sharded and not layout.is_sharded),
        ("all experts on each GPU", lambda other: layout.expert_parallel > 1 and other.expert_parallel == 1),
        ("spreading the experts", lambda other: layout.expert_parallel == 1 and other.expert_parallel > 1),
        ("computing nothing again", lambda other: layout.recomputing != "none" and other.recomputing == "none"),
    ):
        rival = min((each for each in found.others if differs(each.layout)), key=lambda each: each.seconds, default=None)
        if rival:
            yield f"{name} would take {rival.seconds / best.seconds:.2f} times as long, and {rival.memory.peak / 1e9:.1f} GB"
    if layout.is_sharded and not any(not each.layout.is_sharded for each in found.others):
        yield "a copy of the weights on each does not fit"
    if layout.recomputing != "none" and not any(each.layout.recomputing == "none" for each in found.others):
        yield "without recomputation it does not fit"


def _notes(found: Plan) -> Iterator[str]:
    layout = found.best.layout
    yield "note        for compiled blocks in bfloat16, from what an H100 was measured to take; `moebius profile` measures"
    if layout.gpus > 1:
        yield "note        on paper: this version of Moebius trains on one GPU"
    if found.best.computing["waiting"] > 0.3 * found.best.seconds:
        yield "note        bound by the host, which launches kernels: more tokens in a pass cost next to nothing"
    if found.imbalance > 1 and layout.expert_parallel == 1:
        yield f"note        an imbalance of {found.imbalance:g} costs nothing where every GPU has all the experts"


def _values(each: Planned) -> dict[str, object]:
    return {
        "layout": asdict(each.layout),
        "memory": each.memory.parts(),
        "peak_bytes": each.memory.peak,
        "step_seconds": each.seconds,
        "computing": each.computing,
        "sent_bytes": each.sent,
        "communicating": each.communicating,
        "tokens_per_second": each.tokens_per_second,
        "mfu": each.mfu,
    }


def _sorted(values: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda pair: -pair[1])


def _gigabytes(needed: Memory) -> str:
    return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in _sorted(needed.parts()))


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
