"""What a run is about to do, before it does it: sizes, cost, memory, choices."""

import torch

from moebius import cost
from moebius.config import Config
from moebius.data import Corpus
from moebius.memory import memory
from moebius.model.backends import is_compiled
from moebius.observe.terminal import table
from moebius.train.step import matmul_dtype


def summary(config: Config, corpus: Corpus, device: torch.device, choices: list[str], own_kernels: bool) -> list[str]:
    """Lines for the terminal. own_kernels: the experts'."""
    model, train = config.model, config.train
    counts = cost.parameters(model)
    flops = cost.forward_flops_per_token(model, train.seq_len)
    total_flops = 3 * sum(flops.values())
    shares = ", ".join(f"{name} {value / sum(flops.values()):.0%}" for name, value in flops.items() if value)
    dtype = matmul_dtype(train, device)
    needed = memory(config, dtype.itemsize, is_compiled(config.parallel, device), own_kernels=own_kernels)
    rows = [
        ("parameters", f"{_short(sum(counts.values()))} total, {_active(config)} active per token"),
        ("", ", ".join(f"{name} {_short(count)}" for name, count in counts.items() if count)),
        ("FLOPs per token", f"{_short(total_flops)} forward and backward: {shares}"),
        ("memory", f"about {needed.peak / 1e9:.1f} GB: {_gigabytes(needed.parts())}"),
        ("experts", _experts(config)),
        ("balance", _balance(config)),
        ("rotary", _rotary(config)),
        ("data", corpus.summary()),
        ("schedule", _schedule(config)),
        ("device", f"{_device_name(device)}, {str(dtype).removeprefix('torch.')}"),
        *(tuple(choice.split(": ", 1)) for choice in choices),
    ]
    return table(rows)  # pyright: ignore[reportArgumentType]


def _active(config: Config) -> str:
    most = _short(cost.active_parameters(config.model))
    if config.model.router_type != "sigmoid" or not any(config.model.experts_per_layer):
        return most
    fewest = cost.active_parameters(config.model, [0.0] * (config.model.num_layers + config.model.use_mtp))
    return f"{_short(fewest)} to {most} (sigmoid: none to all experts)"


def _experts(config: Config) -> str:
    model = config.model
    if not any(model.experts_per_layer):
        return f"none; base MLP of width {model.base_width}"
    layers = [f"{count}x{width}" for count, width in zip(model.experts_per_layer, model.expert_widths, strict=True)]
    runs: list[list[str]] = []
    for layer in layers:
        if runs and runs[-1][0] == layer:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    widths = ", ".join(run[0] if len(run) == 1 else f"{run[0]} ({len(run)} layers)" for run in runs)
    base = f"; base MLP of width {model.base_width}" if model.base_width else "; no base MLP"
    chosen = f"top-{model.router_top_k}" if model.router_type != "sigmoid" else f"above {model.router_threshold:g}"
    return f"{model.router_type} {chosen}; number x width by layer: {widths}{base}"


def _balance(config: Config) -> str:
    model = config.model
    if not any(model.experts_per_layer):
        return "nothing to balance"
    ways = [
        (model.aux_loss_coeff, f"loss {model.aux_loss_coeff:g} over the {model.aux_loss_scope.replace('_', '-')}"),
        (model.router_bias_rate, f"loss-free bias in steps of {model.router_bias_rate:g}"),
        (model.router_z_loss_coeff, f"z-loss {model.router_z_loss_coeff:g}"),
        (model.router_jitter, f"jitter {model.router_jitter:g}"),
    ]
    used = ", ".join(text for strength, text in ways if strength) or "none"
    acting = [f"{name} {rule.action}" for name, rule in config.observe.rules().items() if rule.action not in ("off", "warn")]
    off = [name for name, rule in config.observe.rules().items() if rule.action == "off"]
    alarms = f"alarms warn{', but ' + ', '.join(acting) if acting else ''}{'; off: ' + ', '.join(off) if off else ''}"
    return f"{used}; {alarms}"


def _rotary(config: Config) -> str:
    model = config.model
    heads = model.rotary_kv_heads * model.num_heads // model.num_kv_heads
    return f"{model.rotary_dims} of {model.head_width} dimensions in {heads} of {model.num_heads} query heads"


def _schedule(config: Config) -> str:
    train = config.train
    tokens = train.batch_size * train.seq_len
    return (
        f"{train.steps:,} steps of {train.batch_size} x {train.seq_len} = {tokens:,} tokens"
        f" ({train.accumulation_steps} micro-batches), {train.optimizer} at {train.lr:g}, {train.schedule}"
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _gigabytes(memory: dict[str, float]) -> str:
    return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items())


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
