"""A plan as text for the terminal and as JSON."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import NamedTuple

from moebius.config.routers import ROUTERS
from moebius.cost.counts import active_parameters, expected_experts_per_token, parameters
from moebius.cost.exports import export_line
from moebius.cost.layouts import Layout, Planned
from moebius.cost.units import byte_size, itemized, short
from moebius.plan.recommend import Plan

INDENT = 12
"""Width of the column of names, under which a folded line goes on."""
SHOWN = 6
"""Largest number of other layouts that are shown."""
BOUND_BY_HOST = 0.3
"""The plan warns if the device waits for the host for more than this share of a step."""

ONE_MACHINE = 8
"""Number of GPUs that machines usually have at most."""


def lines(plan: Plan) -> list[str]:
    """Return the plan as lines for the terminal."""
    best, device = plan.best, plan.device
    gpus, total_memory = best.layout.gpus, byte_size(device.memory, decimals=0)
    rates = f"{short(device.flops)}FLOP/s, {short(device.bytes)}B/s"
    times = ", ".join(
        f"{name.replace('_', ' ')} {seconds * 1e3:.1f}"
        for name, seconds in _largest_first(best.computing).items()
    )
    used = itemized(best.memory.peak, _largest_first(best.memory.parts()), total_memory)
    return [
        f"parameters  {_parameters(plan)}",
        f"on          {f'{gpus} x ' if gpus > 1 else ''}{device.name}: {rates}, "
        f"{total_memory} each ({device.source})",
        f"batch       {_batch(plan)}",
        f"layout      {best.layout}",
        *(f"            {reason}" for reason in _reasons(plan)),
        f"memory      {used}",
        f"host        {byte_size(best.host_bytes)} for each GPU: a copy of weights and moments, "
        "from which checkpoints are written while training goes on",
        f"step        {best.seconds * 1e3:,.1f} ms, {best.tokens_per_second:,.0f} tokens/s, "
        f"MFU {best.mfu:.1%}: {times}",
        *_network(best),
        f"export      {export_line(plan.config.model, plan.config.observe)}",
        *_others(plan),
        "",
        *(f"note        {note}" for note in _notes(plan)),
    ]


def as_json(plan: Plan) -> str:
    """Return the plan as JSON: times in seconds, sizes in bytes, rates in FLOP/s and bytes/s."""
    return json.dumps(
        {
            "device": asdict(plan.device),
            "imbalance": plan.imbalance,
            "batch_size": plan.config.train.batch_size,
            "largest_sequences": plan.largest_sequences,
            "parameters": parameters(plan.config.model),
            "export": export_line(plan.config.model, plan.config.observe),
            "best": _values(plan.best),
            "others": [_values(other) for other in plan.others],
        },
        indent=1,
    )


def _values(candidate: Planned) -> dict[str, object]:
    return {
        "layout": asdict(candidate.layout),
        "memory": candidate.memory.parts(),
        "peak_bytes": candidate.memory.peak,
        "host_bytes": candidate.host_bytes,
        "step_seconds": candidate.seconds,
        "computing": candidate.computing,
        "sent_bytes": candidate.sent,
        "communicating": candidate.communicating,
        "tokens_per_second": candidate.tokens_per_second,
        "mfu": candidate.mfu,
    }


def _parameters(plan: Plan) -> str:
    model = plan.config.model
    total = sum(parameters(model).values())
    active = active_parameters(model, expected_experts_per_token(model))
    by_threshold = ROUTERS[model.router_type].chooses_by_threshold
    expected = " (expected)" if by_threshold and any(model.experts_per_layer) else ""
    return f"{short(total)}, {short(active)} active per token{expected}"


def _batch(plan: Plan) -> str:
    train, layout = plan.config.train, plan.best.layout
    tokens = train.batch_size * train.seq_len
    enlarged = ""
    if plan.asked_batch_size != train.batch_size:
        enlarged = f" (enlarged from {plan.asked_batch_size} to give every GPU the same share)"
    has_room = plan.largest_sequences > layout.sequences
    room = f" (up to {plan.largest_sequences} would fit)" if has_room else ""
    return (
        f"{train.batch_size} x {train.seq_len} = {tokens:,} tokens{enlarged}; on each GPU "
        f"{layout.sequences} sequence{'s' if layout.sequences > 1 else ''} in a pass{room}, "
        f"{layout.passes} pass{'es' if layout.passes > 1 else ''} a step"
    )


def _network(best: Planned) -> Iterator[str]:
    if best.sent:
        sent = ", ".join(
            f"{name} {byte_size(size, decimals=2)}"
            for name, size in _largest_first(best.sent).items()
        )
        not_hidden = best.communicating * 1e3
        hidden = f"all but {not_hidden:.1f} ms" if not_hidden else "all"
        yield f"network     each GPU sends in a step: {sent}; computation hides {hidden} of it"


def _others(plan: Plan) -> Iterator[str]:
    if plan.others:
        yield ""
        yield "other layouts that fit"
    for other in plan.others[:SHOWN]:
        milliseconds, size = other.seconds * 1e3, byte_size(other.memory.peak)
        yield f"  {milliseconds:9,.1f} ms {size:>10}  {other.layout}"


def _reasons(plan: Plan) -> Iterator[str]:
    """Yield the reasons for the best layout: what others would cost, and what does not fit."""
    layout = plan.best.layout
    others = [other.layout for other in plan.others]
    if layout.gpus == 1 and layout.recomputing == "none":
        yield "because it fits: nothing has to be recomputed"
    yield from _costs_of_alternatives(plan)
    if layout.is_sharded and all(other.is_sharded for other in others):
        yield "a copy of the weights on each GPU does not fit"
    if layout.recomputing != "none" and all(other.recomputing != "none" for other in others):
        yield "without recomputation it does not fit"


class _Question(NamedTuple):
    """A yes-or-no decision that distinguishes layouts, and both answers in words."""

    is_yes: Callable[[Layout], bool]
    yes: str
    """What to call layouts with the answer yes; empty if they are not worth showing."""
    no: str


_QUESTIONS = (
    _Question(
        lambda layout: layout.is_sharded,
        yes="with sharded weights",
        no="with a copy of the weights on each GPU",
    ),
    _Question(
        lambda layout: layout.expert_parallel > 1,
        yes="with the experts spread over GPUs",
        no="with all experts on each GPU",
    ),
    _Question(lambda layout: layout.recomputing != "none", yes="", no="without recomputation"),
)


def _costs_of_alternatives(plan: Plan) -> Iterator[str]:
    """Yield, for each decision, the cost of the fastest layout with the opposite answer."""
    best = plan.best
    for question in _QUESTIONS:
        decision = question.is_yes(best.layout)
        alternative = question.no if decision else question.yes
        rivals = [other for other in plan.others if question.is_yes(other.layout) != decision]
        if alternative and rivals:
            rival = min(rivals, key=lambda other: other.seconds)
            yield (
                f"{alternative} a step would take {rival.seconds / best.seconds:.2f} times as "
                f"long and need {byte_size(rival.memory.peak)}"
            )


def _notes(plan: Plan) -> Iterator[str]:
    layout = plan.best.layout
    yield (
        "estimated for compiled blocks in bfloat16 from measurements on an H100; "
        "`moebius profile` measures a step"
    )
    if layout.gpus > 1:
        yield (
            f"start with `{_command(plan)}`; the figures are on paper until they are measured "
            "there"
        )
    if plan.best.computing["waiting"] > BOUND_BY_HOST * plan.best.seconds:
        yield (
            "the GPU waits for the host, which launches its kernels: more tokens in a pass would "
            "cost next to nothing"
        )
    if plan.imbalance > 1 and layout.expert_parallel == 1:
        yield (
            f"an imbalance of {plan.imbalance:g} costs nothing here, because every GPU has all "
            "experts"
        )


def _command(plan: Plan) -> str:
    """Return the command that trains as planned, with the flags that change the configuration."""
    layout, config = plan.best.layout, plan.config
    planned = {
        "shard": layout.gpus if layout.is_sharded else 1,
        "expert": layout.expert_parallel,
        "activation_checkpointing": layout.recomputing,
    }
    flags = [
        f" --parallel.{name} {value}"
        for name, value in planned.items()
        if value != getattr(config.parallel, name)
    ]
    if plan.asked_batch_size != config.train.batch_size:
        flags.append(f" --train.batch_size {config.train.batch_size}")
    flags.append(f" --train.micro_batch_size {layout.sequences}")
    on_each = max(n for n in range(1, ONE_MACHINE + 1) if layout.gpus % n == 0)
    machines = ""
    if layout.gpus > on_each:
        machines = f"--nnodes {layout.gpus // on_each} --rdzv-endpoint HOST:PORT "
    return f"torchrun {machines}--nproc-per-node {on_each} -m moebius train ...{''.join(flags)}"


def _largest_first(values: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda pair: -pair[1]))
