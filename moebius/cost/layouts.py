"""How a run could be laid out across GPUs, and what each of them would hold, compute and send.

Every device processes an equal part of the batch. Weights are either replicated, and their
gradients summed over all devices, or sharded: stored in parts and gathered layer by layer, as
FSDP2 does. The experts of a layer may be split between some devices, which then send each other
tokens. Weights and gradients travel while the device computes, but it waits for tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from moebius.config import Config, ModelConfig
from moebius.cost.counts import (
    expected_experts_per_token,
    parameters,
    training_flops_per_token,
)
from moebius.cost.device import Device, expert_backend_on
from moebius.cost.memory import Memory, Share, memory
from moebius.cost.sizes import BFLOAT16, FLOAT32
from moebius.cost.step_time import step_seconds

Recomputing = Literal["none", "full", "selective"]

FILLED = 0.94
"""Share of a device's memory that a run can use; the allocator and libraries need the rest."""
LATENCY = 20e-6
"""Seconds that a collective takes in addition to moving its bytes, for each doubling of the
devices."""
HIDING = 0.7
"""Part of the computing time during which weights and gradients can travel."""
MOST_SEQUENCES = 2**20
"""Most sequences of one pass that a layout may have. No device has the memory for more."""
BUCKET = 100e6
"""Bytes of gradients that replicas sum in one collective."""


@dataclass(frozen=True)
class Layout:
    """One way to spread a run over devices."""

    gpus: int
    """Number of devices."""
    expert_parallel: int
    """Number of devices that split each layer's experts between them."""
    is_sharded: bool
    """Whether weights are stored in parts over all devices, and not replicated."""
    recomputing: Recomputing
    """The activation checkpointing, as in `parallel.activation_checkpointing`."""
    sequences: int
    """Number of sequences on one device in one forward pass."""
    passes: int
    """Number of forward passes per optimizer step."""

    def __str__(self) -> str:
        weights = "one GPU"
        if self.gpus > 1:
            replicated = "a copy of the weights on each GPU"
            weights = "weights sharded over all GPUs" if self.is_sharded else replicated
        parts = [weights]
        if self.expert_parallel > 1:
            parts.append(f"experts over {self.expert_parallel}")
        if self.recomputing != "none":
            parts.append(f"{self.recomputing} recomputation")
        count = self.sequences * self.passes
        in_passes = f" in {self.passes} passes" if self.passes > 1 else ""
        parts.append(f"{count} sequence{'s' if count > 1 else ''}{in_passes}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Planned:
    """What one layout of a configuration would need on each of its devices."""

    config: Config
    device: Device
    layout: Layout
    memory: Memory
    """Bytes on one device."""
    computing: dict[str, float]
    """Seconds of a step by component."""
    sent: dict[str, float]
    """Bytes that one device sends in a step, by kind of traffic (weights, gradients, tokens)."""
    communicating: float
    """Seconds of communication in a step that computation cannot hide."""

    @property
    def fits(self) -> bool:
        """Whether the device has enough memory."""
        return fits(self.memory, self.device)

    @property
    def host_bytes(self) -> float:
        """Bytes of host memory for each device's part of a checkpoint that is being written.

        Training goes on meanwhile, so its weights and moments are copied first. Reading the
        checkpoint back to verify it takes a few MB, because it is read in pieces.
        """
        return self.memory.weights + self.memory.optimizer

    @property
    def seconds(self) -> float:
        """Seconds of a step: computation, and the communication that it cannot hide."""
        return sum(self.computing.values()) + self.communicating

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all devices together."""
        layout, seq_len = self.layout, self.config.train.seq_len
        return layout.gpus * layout.sequences * layout.passes * seq_len / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: FLOP/s without recomputation, divided by the devices' rate."""
        model = self.config.model
        flops = training_flops_per_token(
            model, self.config.train.seq_len, expected_experts_per_token(model)
        )
        return self.tokens_per_second * flops / (self.layout.gpus * self.device.flops)


def layouts(config: Config, gpus: int) -> Iterator[Layout]:
    """Yield every layout of a run over `gpus` devices, the simplest first.

    Each device's sequences are divided evenly into passes, and the experts of every layer evenly
    between devices. Unless the configuration asks for one kind of activation checkpointing, all
    kinds are tried. `train.batch_size` must be a multiple of `gpus`. Layouts in which training
    would refuse the configuration are left out.
    """
    # These need whole experts on every device, as moebius/parallel/layout.py checks.
    is_whole = bool(config.train.common_start) or any(
        rule.action == "revive" for rule in config.observe.rules().values()
    )
    per_device = config.train.batch_size // gpus
    largest = min(per_device, MOST_SEQUENCES)
    sizes = [size for size in range(largest, 0, -1) if per_device % size == 0]
    asked = config.parallel.activation_checkpointing
    every_kind: tuple[Recomputing, ...] = ("none", "selective", "full")
    for recomputing in every_kind if asked == "none" else (asked,):
        for is_sharded in (False, True) if gpus > 1 and not is_whole else (False,):
            for spread in [1] if is_whole else _expert_spreads(config.model, gpus):
                for size in sizes:
                    passes = per_device // size
                    yield Layout(gpus, spread, is_sharded, recomputing, size, passes)


def planned(config: Config, device: Device, layout: Layout, imbalance: float = 1.0) -> Planned:
    """Return what a layout would need on each device: memory, seconds and traffic.

    imbalance is the load of the busiest expert, divided by an even load.
    """
    needed = needed_memory(config, device, layout, imbalance)
    config, share = _recomputing(config, layout), _share(config, layout, imbalance)
    computing = step_seconds(config, device, share)
    sent = _bytes_of_weights(config, layout)
    weights = _seconds_of_weights(config, device, layout, sum(sent.values()))
    not_hidden = max(0.0, weights - HIDING * sum(computing.values()))
    token_bytes = _bytes_of_tokens(config, layout, share.imbalance)
    sent["tokens to experts and back"] = token_bytes
    waiting = _seconds_of_tokens(config, device, layout, token_bytes)
    sent = {name: size for name, size in sent.items() if size}
    return Planned(config, device, layout, needed, computing, sent, not_hidden + waiting)


def needed_memory(
    config: Config, device: Device, layout: Layout, imbalance: float = 1.0
) -> Memory:
    """Return the memory that a layout would need on each device.

    This is much less work than the whole of `planned`, and rules out most layouts of a large run.
    """
    experts, share = expert_backend_on(config, device), _share(config, layout, imbalance)
    config = _recomputing(config, layout)
    return memory(config, BFLOAT16, compiled=True, share=share, experts=experts)


def fits(needed: Memory, device: Device) -> bool:
    """Return whether the device has enough memory."""
    return needed.peak <= FILLED * device.memory


def _recomputing(config: Config, layout: Layout) -> Config:
    """Return the configuration with the layout's activation checkpointing."""
    parallel = replace(config.parallel, activation_checkpointing=layout.recomputing)
    return replace(config, parallel=parallel)


def _share(config: Config, layout: Layout, imbalance: float) -> Share:
    """Return what each device holds of a run in this layout."""
    return Share(
        sequences=layout.sequences,
        passes=layout.passes,
        shared=1 / layout.gpus if layout.is_sharded else 1.0,
        experts=1 / (layout.gpus if layout.is_sharded else layout.expert_parallel),
        expert_parallel=layout.expert_parallel,
        imbalance=_load_of_busiest(config.model, layout.expert_parallel, imbalance),
    )


def _expert_spreads(model: ModelConfig, gpus: int) -> list[int]:
    """Return all numbers of devices between which every layer's experts can be split evenly."""
    counts = [count for count in model.experts_per_layer if count]
    if not counts:
        return [1]
    return [
        devices
        for devices in range(1, min(gpus, min(counts)) + 1)
        if gpus % devices == 0 and all(count % devices == 0 for count in counts)
    ]


def _load_of_busiest(model: ModelConfig, spread: int, imbalance: float) -> float:
    """Return the rows on the device with the busiest expert, divided by those of an even load.

    The result is 1 if every device has all experts. All experts but the busiest one are assumed
    to share the remaining rows evenly.
    """
    count = max(model.experts_per_layer)
    if spread == 1 or not count:
        return 1.0
    per_device = count // spread
    load_of_others = max(0.0, count - imbalance) / max(1, count - 1)
    return (min(imbalance, count) + (per_device - 1) * load_of_others) / per_device


def _bytes_of_weights(config: Config, layout: Layout) -> dict[str, float]:
    """Return the bytes of weights and gradients that a device sends in a step."""
    counts = parameters(config.model)
    experts = counts["experts"]
    shared = sum(counts.values()) - experts
    copies = layout.gpus // layout.expert_parallel  # of every expert
    sent_once = (
        _sent_fraction(layout.gpus) * shared
        + _sent_fraction(copies) * experts / layout.expert_parallel
    )
    if not layout.is_sharded:
        return {"adding up gradients": 2 * FLOAT32 * sent_once}
    return {  # weights are gathered for forward, and again for backward
        "gathering weights": layout.passes * 2 * BFLOAT16 * sent_once,
        "adding up gradients": layout.passes * FLOAT32 * sent_once,
    }


def _seconds_of_weights(config: Config, device: Device, layout: Layout, sent: float) -> float:
    """Return the seconds in which weights and gradients travel, given the bytes that are sent."""
    gpus = layout.gpus
    if layout.is_sharded:
        collectives = 3 * config.model.num_layers * layout.passes
    else:
        collectives = math.ceil(sum(parameters(config.model).values()) * FLOAT32 / BUCKET)
    rate = device.link
    if gpus > device.per_machine:  # every GPU of a machine sends a part to the other machines
        rate = min(device.link, device.per_machine * device.network)
    return sent / rate + LATENCY * math.log2(max(1, gpus)) * collectives * (gpus > 1)


def _bytes_of_tokens(config: Config, layout: Layout, imbalance: float) -> float:
    """Return the bytes of tokens that a device sends in a step to experts and back.

    Forward and backward each send a row there and back.
    """
    tokens = layout.sequences * layout.passes * config.train.seq_len
    rows = sum(expected_experts_per_token(config.model)) * tokens * imbalance
    return 4 * BFLOAT16 * rows * config.model.dim * _sent_fraction(layout.expert_parallel)


def _seconds_of_tokens(config: Config, device: Device, layout: Layout, sent: float) -> float:
    """Return the seconds in which tokens travel, given the bytes that are sent."""
    spread = layout.expert_parallel
    rate = device.link if spread <= device.per_machine else device.network
    collectives = 4 * config.model.num_layers * layout.passes * (spread > 1)
    return sent / rate + LATENCY * math.log2(max(1, spread)) * collectives


def _sent_fraction(devices: int) -> float:
    """Return the fraction of evenly spread data that belongs to the other devices."""
    return (devices - 1) / devices
