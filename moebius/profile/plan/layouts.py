"""How a run could be laid out over many GPUs: what each then holds, computes and sends, on paper.

Every device has the same part of the batch. Weights are replicated, their gradients added up over all devices, or sharded:
kept in parts, gathered for each layer, as FSDP2 does. Experts may live on some devices only, among which tokens then
travel. Weights and gradients travel while the device computes; tokens do not.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from moebius.config import Config, ModelConfig
from moebius.cost import parameters, training_flops_per_token
from moebius.memory import WIDE, Memory, Share, memory
from moebius.profile.devices import Device
from moebius.profile.plan.estimate import ITEM, experts_per_token, has_own_kernels, step_seconds

Recomputing = Literal["none", "full", "selective"]

FILLED = 0.94  # of a device's memory: the rest is the allocator's and the libraries'
LATENCY = 20e-6  # of a collective, each time the number of devices doubles
BEHIND = 0.7  # of the computing time that weights and gradients can travel behind


@dataclass(frozen=True)
class Layout:
    """gpus devices; experts spread over `expert_parallel` of them; sequences on one device in one pass."""

    gpus: int
    expert_parallel: int
    is_sharded: bool
    recomputing: Recomputing
    sequences: int
    passes: int

    def __str__(self) -> str:
        weights = "weights sharded over all GPUs" if self.is_sharded else "a copy of the weights on each GPU"
        experts = f", experts over {self.expert_parallel}" if self.expert_parallel > 1 else ""
        again = f", {self.recomputing} recomputation" if self.recomputing != "none" else ""
        passes = f" in {self.passes} passes" if self.passes > 1 else ""
        count = self.sequences * self.passes
        sequences = f"{count} sequence{'s' if count > 1 else ''}{passes}"
        return f"{weights if self.gpus > 1 else 'one GPU'}{experts}{again}, {sequences}"


@dataclass(frozen=True)
class Planned:
    """A layout of a configuration on devices: bytes on one of them, seconds of a step by component, bytes each sends."""

    config: Config
    device: Device
    layout: Layout
    memory: Memory
    computing: dict[str, float]
    sent: dict[str, float]
    communicating: float

    @property
    def fits(self) -> bool:
        return self.memory.peak <= FILLED * self.device.memory

    @property
    def seconds(self) -> float:
        """Of a step: what communication adds is what computing does not hide."""
        return sum(self.computing.values()) + self.communicating

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.layout.gpus * self.layout.sequences * self.layout.passes * self.config.train.seq_len / self.seconds

    @property
    def mfu(self) -> float:
        """The configuration's FLOPs without recomputation, over the devices' rate in large products."""
        model = self.config.model
        flops = training_flops_per_token(model, self.config.train.seq_len, experts_per_token(model))
        return self.tokens_per_second * flops / (self.layout.gpus * self.device.flops)


def layouts(config: Config, gpus: int) -> Iterator[Layout]:
    """All that divide the batch and the experts, the plainest first."""
    each = config.train.batch_size // gpus
    sizes = [size for size in range(each, 0, -1) if each % size == 0]
    asked = config.parallel.activation_checkpointing
    ways: tuple[Recomputing, ...] = ("none", "selective", "full") if asked == "none" else (asked,)
    for recomputing in ways:
        for is_sharded in (False, True) if gpus > 1 else (False,):
            for spread in _spreads(config.model, gpus):
                for size in sizes:
                    yield Layout(gpus, spread, is_sharded, recomputing, size, each // size)


def planned(config: Config, device: Device, layout: Layout, imbalance: float = 1.0) -> Planned:
    """imbalance: the busiest expert's load over an even one."""
    config = replace(config, parallel=replace(config.parallel, activation_checkpointing=layout.recomputing))
    share = Share(
        sequences=layout.sequences,
        passes=layout.passes,
        shared=1 / layout.gpus if layout.is_sharded else 1.0,
        experts=1 / (layout.gpus if layout.is_sharded else layout.expert_parallel),
        expert_parallel=layout.expert_parallel,
        imbalance=_busiest(config.model, layout.expert_parallel, imbalance),
    )
    needed = memory(config, ITEM, compiled=True, share=share, own_kernels=has_own_kernels(config, device))
    computing = step_seconds(config, device, share)
    sent, waited = _communication(config, device, layout, share.imbalance)
    hidden = max(0.0, waited["weights"] - BEHIND * sum(computing.values()))
    return Planned(config, device, layout, needed, computing, sent, hidden + waited["tokens"])


def _spreads(model: ModelConfig, gpus: int) -> list[int]:
    """Numbers of devices that the experts of every layer can be divided among."""
    counts = [count for count in model.experts_per_layer if count]
    if not counts:
        return [1]
    return [n for n in range(1, min(gpus, min(counts)) + 1) if gpus % n == 0 and all(count % n == 0 for count in counts)]


def _busiest(model: ModelConfig, spread: int, imbalance: float) -> float:
    """Rows on the device with the busiest expert, over an even load: the same on all where each has all experts."""
    count = max(model.experts_per_layer)
    if spread == 1 or not count:
        return 1.0
    own = count // spread
    others = max(0.0, count - imbalance) / max(1, count - 1)
    return (min(imbalance, count) + (own - 1) * others) / own


def _communication(
    config: Config, device: Device, layout: Layout, imbalance: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes that a device sends in a step by what they are, and the seconds that weights (and gradients) and tokens take."""
    model, gpus, spread = config.model, layout.gpus, layout.expert_parallel
    experts = parameters(model)["experts"]
    shared = sum(parameters(model).values()) - experts
    copies = gpus // spread  # of each expert
    sent: dict[str, float] = {}
    if layout.is_sharded:
        once = _others(gpus) * shared + _others(copies) * experts / spread
        sent["gathering weights"] = layout.passes * 2 * ITEM * once
        sent["adding up gradients"] = layout.passes * WIDE * once
        collectives = 3 * model.num_layers * layout.passes
    else:
        sent["adding up gradients"] = 2 * WIDE * (_others(gpus) * shared + _others(copies) * experts / spread)
        collectives = math.ceil(sum(parameters(model).values()) * WIDE / 100e6)  # in buckets
    rate = device.link if gpus <= device.per_machine else min(device.link, device.per_machine * device.network)
    seconds = {"weights": sum(sent.values()) / rate + LATENCY * math.log2(max(1, gpus)) * collectives * (gpus > 1)}
    tokens = layout.sequences * layout.passes * config.train.seq_len
    rows = sum(experts_per_token(model)) * tokens * imbalance
    sent["tokens to experts and back"] = 4 * ITEM * rows * model.dim * _others(spread)
    between = device.link if spread <= device.per_machine else device.network
    calls = 4 * model.num_layers * layout.passes * (spread > 1)
    seconds["tokens"] = sent["tokens to experts and back"] / between + LATENCY * math.log2(max(1, spread)) * calls
    return {name: size for name, size in sent.items() if size}, seconds


def _others(devices: int) -> float:
    """Of what is spread over them, the part that is not one's own."""
    return (devices - 1) / devices
