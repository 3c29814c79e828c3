"""Estimate the seconds of a compiled training step in bfloat16 on a device that may be absent.

The components of blocks are estimated in moebius/cost/layer_time.py. This file adds the rest of
the model, the optimizer and the host; its constants were fitted to the same measurements.
"""

from moebius.config import MTP_OFFSETS, Config
from moebius.cost.counts import parameters
from moebius.cost.device import Device
from moebius.cost.floor import optimizer_bytes
from moebius.cost.layer_time import Passes, block_seconds, mlp_seconds, product_seconds
from moebius.cost.memory import Share
from moebius.cost.sizes import BFLOAT16, FLOAT32

EMBEDDING = 90
"""Bytes that the embedding moves for each number in the residual stream."""
OPTIMIZER = 0.88
"""Share of the rate of large copies that the optimizer reaches."""
WAITING, WAITING_ROUTED = 0.2e-3, 0.4e-3
"""Seconds per layer in which the device waits for the host, without and with experts."""
LAUNCHING, LAUNCHING_ROUTED = 2e-3, 4.5e-3
"""Seconds per layer that the host needs to launch kernels, without and with experts. No step is
shorter than their sum."""
PRODUCTS = ("attention_core", "attention_projections", "expert_gemms", "base_mlp")
"""Components whose results selective activation checkpointing keeps."""


def step_seconds(config: Config, device: Device, share: Share) -> dict[str, float]:
    """Return the seconds of each component of one step on one device, without communication.

    `waiting` is the time in which the device waits for the host.
    """
    model, passes = config.model, share.passes
    tokens = share.sequences * config.train.seq_len
    seconds: dict[str, float] = {}

    def add(name: str, seconds_per_pass: float) -> None:
        seconds[name] = seconds.get(name, 0.0) + seconds_per_pass * passes

    blocks: dict[tuple[int, int], dict[str, Passes]] = {}  # layers of one shape take one time
    for layer, shape in enumerate(zip(model.experts_per_layer, model.expert_widths, strict=True)):
        if shape not in blocks:
            blocks[shape] = block_seconds(config, device, share, layer)
        for name, (forward, backward) in blocks[shape].items():
            add(name, forward * (2 if _is_recomputed(config, name) else 1) + backward)
    head = _head_seconds(config, device, tokens)
    add("lm_head", head)
    add("embedding", EMBEDDING * tokens * model.dim / device.bytes)
    if model.use_mtp:
        mlps = mlp_seconds(config, device, share, model.num_layers - 1).values()
        add("mtp", len(MTP_OFFSETS) * (head + sum(sum(component) for component in mlps)))
    stored = _stored_parameters(config, share)
    # The gradients of every pass but the first are added to the existing ones.
    seconds["everything_else"] = (passes - 1) * 3 * FLOAT32 * stored / device.bytes
    seconds["optimizer"] = optimizer_bytes(config) * stored / (OPTIMIZER * device.bytes)
    seconds["waiting"] = _host_seconds(config, passes, WAITING, WAITING_ROUTED)
    launching = _host_seconds(config, passes, LAUNCHING, LAUNCHING_ROUTED)
    seconds["waiting"] += max(0.0, launching - sum(seconds.values()))
    return {name: value for name, value in seconds.items() if value}


def _is_recomputed(config: Config, component: str) -> bool:
    """Return whether backward computes the component's forward pass again."""
    recomputing = config.parallel.activation_checkpointing
    return recomputing == "full" or (recomputing == "selective" and component not in PRODUCTS)


def _stored_parameters(config: Config, share: Share) -> float:
    """Return the number of parameters that the device stores.

    Unlike in moebius/cost/memory.py, the MTP layer's experts count as parameters outside of the
    experts, because the constants were fitted to estimates that counted them this way.
    """
    counts = parameters(config.model)
    experts = counts["experts"]
    return share.shared * (sum(counts.values()) - experts) + share.experts * experts


def _head_seconds(config: Config, device: Device, tokens: int) -> float:
    """Return the seconds of the LM head and its loss, forward and backward.

    There are three matrix products, and the logits are read twice and written once.
    """
    D, V = config.model.dim, config.model.vocab_size
    forward, backward = product_seconds(device, tokens, [(D, V)])
    return forward + backward + 3 * BFLOAT16 * tokens * V / device.bytes


def _host_seconds(config: Config, passes: int, dense: float, routed: float) -> float:
    """Return the host's seconds in a step; `dense` and `routed` are its seconds per layer."""
    return passes * sum(routed if count else dense for count in config.model.experts_per_layer)
