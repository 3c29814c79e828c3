"""The summary at the start of a run: sizes, costs, memory, and the choices that were made."""

from itertools import groupby

import torch

from moebius.config import Config, ModelConfig
from moebius.config.in_phases import all_phases, largest_phase, mixture_in_phase
from moebius.config.routers import ROUTERS
from moebius.cost import counts as cost
from moebius.cost.exports import export_line
from moebius.cost.memory import Share, memory
from moebius.cost.units import counted, itemized, short
from moebius.data import Corpus
from moebius.hardware.backends import Backends, is_compiled
from moebius.hardware.device import crowding, describe
from moebius.hardware.precision import dtype_name, matmul_dtype
from moebius.observe.terminal import table
from moebius.train.remarks import remarks


def summary(
    config: Config,
    corpus: Corpus,
    device: torch.device,
    backends: Backends,
    choices: list[str],
    share: Share | None = None,
) -> list[str]:
    """Return the lines that a run begins with.

    Each of the choices reads "name: what was chosen (why)". share: what this process holds of the
    run; by default all of it.
    """
    model, largest = config.model, largest_phase(config)
    train = largest.train
    counts = cost.parameters(model)
    flops = cost.forward_flops_per_token(model, train.seq_len)
    forward = sum(flops.values())
    shares = ", ".join(f"{name} {value / forward:.0%}" for name, value in flops.items() if value)
    dtype = matmul_dtype(train, device)
    compiled = is_compiled(config.parallel, device)
    needed = memory(
        largest,
        dtype.itemsize,
        compiled,
        share,
        experts=backends.experts,
        attention=backends.attention,
    )
    by_component = ", ".join(f"{name} {short(count)}" for name, count in counts.items() if count)
    total = short(sum(counts.values()))
    rows = [
        ("parameters", f"{total} total, {_active(config)} active per token"),
        ("", by_component),
        ("FLOPs per token", f"{short(3 * forward)} forward and backward: {shares}"),
        ("memory", f"about {itemized(needed.peak, needed.parts())}{_of_largest(config)}"),
        ("experts", _experts(model)),
        ("balance", _balance(config)),
        ("rotary", _rotary(model)),
        ("data", corpus.summary()),
        *(("", note) for note in corpus.notes),
        ("schedule", _schedule(config)),
        *(("" if number else "phases", line) for number, line in enumerate(_phases(config))),
        ("export", export_line(model, config.observe)),
        *remarks(config, corpus),
        ("device", f"{describe(device)}, {dtype_name(dtype)}"),
        *(("processor", f"{use}; the run will be slow") for use in [crowding(device)] if use),
        *((name, choice) for name, _, choice in (line.partition(": ") for line in choices)),
    ]
    return table(rows)


def _active(config: Config) -> str:
    model = config.model
    most = short(cost.active_parameters(model))
    if not ROUTERS[model.router_type].chooses_by_threshold or not any(model.experts_per_layer):
        return most
    without = [0.0] * (model.num_layers + model.use_mtp)
    fewest = short(cost.active_parameters(model, without))
    return f"{fewest} to {most} ({model.router_type}: none to all experts)"


def _experts(model: ModelConfig) -> str:
    if not any(model.experts_per_layer):
        return f"none; base MLP of width {model.base_width}"
    shapes = zip(model.experts_per_layer, model.expert_widths, strict=True)
    runs = [
        (shape, len(list(layers)))
        for shape, layers in groupby(f"{count}x{width}" for count, width in shapes)
    ]
    widths = ", ".join(shape if n == 1 else f"{shape} ({n} layers)" for shape, n in runs)
    base = f"; base MLP of width {model.base_width}" if model.base_width else "; no base MLP"
    by_threshold = ROUTERS[model.router_type].chooses_by_threshold
    chosen = f"above {model.router_threshold:g}" if by_threshold else f"top-{model.router_top_k}"
    return f"{model.router_type} {chosen}; number x width by layer: {widths}{base}"


def _balance(config: Config) -> str:
    model = config.model
    if not any(model.experts_per_layer):
        return "nothing to balance"
    scope = model.aux_loss_scope.replace("_", "-")
    means = [
        (model.aux_loss_coeff, f"loss {model.aux_loss_coeff:g} over the {scope}"),
        (model.router_bias_rate, f"loss-free bias in steps of {model.router_bias_rate:g}"),
        (model.router_z_loss_coeff, f"z-loss {model.router_z_loss_coeff:g}"),
        (model.router_jitter, f"jitter {model.router_jitter:g}"),
    ]
    used = ", ".join(text for strength, text in means if strength) or "none"
    rules = config.observe.rules()
    acting = [
        f"{name} {rule.action}"
        for name, rule in rules.items()
        if rule.action not in ("off", "warn")
    ]
    off = [name for name, rule in rules.items() if rule.action == "off"]
    exceptions = f", but {', '.join(acting)}" if acting else ""
    silent = f"; off: {', '.join(off)}" if off else ""
    return f"{used}; alarms warn{exceptions}{silent}"


def _rotary(model: ModelConfig) -> str:
    heads = model.rotary_kv_heads * model.num_heads // model.num_kv_heads
    return (
        f"{model.rotary_dims} of {model.head_width} dimensions in {heads} of {model.num_heads} "
        "query heads"
    )


def _of_largest(config: Config) -> str:
    return " (in the largest phase)" if config.train.phases else ""


def _phases(config: Config) -> list[str]:
    """Return a table of the phases, one line for each below the names of its columns."""
    if not config.train.phases:
        return []
    train, begin, step, rate = config.train, 0, 0, 0.0
    rows: list[tuple[str, ...]] = []
    parts = zip(train.phases, all_phases(config), train.phase_ends(0, 0), strict=True)
    for number, (phase, plain, (end, last)) in enumerate(parts, start=1):
        own = plain.train
        target = train.lr * phase.lr_fraction
        is_flat = phase.schedule == "constant"
        lr = f"{target:.3g}" if is_flat else f"{rate:.3g} -> {target:.3g} {phase.schedule}"
        micro = f" in {own.accumulation_steps}" if own.accumulation_steps > 1 else ""
        mixture = ", ".join(f"{weight:g}" for weight in mixture_in_phase(config, number - 1))
        batch = f"{own.batch_size} x {own.seq_len}{micro}"
        steps = f"{step + 1:,}-{end:,}" if end > step else "none"
        rows.append((str(number), steps, f"{begin:,}-{last:,}", batch, lr, mixture))
        step, begin, rate = end, last, target
    rows.insert(0, ("", "steps", "tokens", "batch", "learning rate", "mixture"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _schedule(config: Config) -> str:
    train = config.train
    if train.phases:
        return (
            f"{counted(len(train.phases), 'phase')}, {train.steps:,} steps, "
            f"{train.phases[-1].until:,} tokens, {train.optimizer} at {train.lr:g}"
        )
    tokens, parts = train.batch_size * train.seq_len, train.accumulation_steps
    return (
        f"{train.steps:,} steps of {train.batch_size} x {train.seq_len} = {tokens:,} tokens"
        f" ({parts} micro-batch{'es' if parts > 1 else ''}), {train.optimizer} at {train.lr:g}, "
        f"{train.schedule}"
    )
