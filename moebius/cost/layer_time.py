"""Estimate the seconds that each component of a compiled block takes in bfloat16 on a device.

A matrix product takes the time of its FLOPs or that of its bytes, whichever is longer. Elementwise
work takes the time of its bytes. What no formula gives is a constant: how long a grouped product
takes to start, how far attention is from its floor, how many more bytes kernels move than they
must. The constants were fitted to the measured components of `standard`, `pr_moe` and `dense`
on an H100; those of the fused expert kernels come from timing these kernels alone.
docs/log/plans.md compares the results with measurements, including configurations that were not
used for the fit.
"""

import math
from typing import NamedTuple

from moebius.config import Config, ModelConfig
from moebius.config.expert_backends import EXPERT_BACKENDS
from moebius.cost.activations import routed_rows
from moebius.cost.counts import expected_experts, layer_expert_weights
from moebius.cost.device import Device, expert_backend_on
from moebius.cost.memory import Share
from moebius.cost.sizes import BFLOAT16, FLOAT32

H100_FLOPS = 776.365e12
"""FLOP/s of a large bfloat16 product on the H100 on which the constants were measured."""

COPY_SHARE = 0.85
"""Share of the rate of large copies at which a matrix product moves its bytes."""
GROUPED_START = 52e-6
"""Seconds before one of torch's grouped products runs."""
GROUPED_FACTOR = 1.236
"""Time of a grouped product, divided by that of a plain product with the same FLOPs."""
FUSED_START = 10e-6
"""Seconds before one of the fused expert kernels runs."""
FUSED_FORWARD, FUSED_BACKWARD = 1.21, 1.32
"""Time of the fused expert kernels, activation included, divided by that of plain products."""

ATTENTION_SECONDS = {32: 2.46e-3, 64: 1.87e-3, 112: 1.85e-3, 128: 1.71e-3}
"""Seconds of attention, forward and backward, in one layer of `ATTENTION_NUMBERS` on an H100, by
the width of a head. Every sequence was one document."""
ATTENTION_NUMBERS = 16 * 2048 * 896
"""Size of the queries in those measurements: sequences, times tokens in each, times the width of
all heads."""
ATTENTION_KEYS = 1024
"""Mean number of keys per query in those measurements."""
ATTENTION_WITHOUT_KEYS = 0.58
"""Part of that time that does not depend on the number of keys."""
ATTENTION_FORWARD = 0.28
"""Part of attention's time that the forward pass takes."""
DOCUMENT_TOKENS = 800
"""Assumed mean length of a document, such as a source file or a web page."""
HALF_A_BLOCK = 64
"""Keys per query that are read outside of its document, because masks consist of blocks."""

NORM, NORM_WITH_BASE = 56, 104
"""Bytes that the norms and additions of a block move for each number in the residual stream,
without and with a base MLP."""
NORM_FORWARD = 0.6
"""Part of those bytes that the forward pass moves."""
ROTARY = 11
"""Bytes that the rotary embedding moves for each number in the queries and keys."""
ROUTER = 240e-6
"""Seconds of a layer's router."""
DISPATCH = 150e-6
"""Seconds of sorting a layer's rows by expert, for backends that are not fused."""


class Passes(NamedTuple):
    """Seconds of a component in one forward pass and in its backward pass."""

    forward: float
    backward: float


def block_seconds(config: Config, device: Device, share: Share, layer: int) -> dict[str, Passes]:
    """Return the seconds of each component of a block, for the sequences of one forward pass."""
    model, tokens = config.model, share.sequences * config.train.seq_len
    D = model.dim
    query, key = model.num_heads * model.head_width, model.num_kv_heads * model.head_width
    norms = NORM_WITH_BASE if model.base_width else NORM
    rotary = ROTARY * tokens * (query + key) / device.bytes / 2
    projections = product_seconds(device, tokens, [(D, query), (D, key), (D, key), (query, D)])
    # The gradients of one input through query, key and value are added up.
    adding = 6 * BFLOAT16 * tokens * D / device.bytes
    attention = _attention_seconds(config, device, tokens)
    return {
        "norms": Passes(
            norms * NORM_FORWARD * tokens * D / device.bytes,
            norms * (1 - NORM_FORWARD) * tokens * D / device.bytes,
        ),
        "attention_projections": Passes(projections.forward, projections.backward + adding),
        "rotary": Passes(rotary, rotary),
        "attention_core": Passes(
            ATTENTION_FORWARD * attention, (1 - ATTENTION_FORWARD) * attention
        ),
        **mlp_seconds(config, device, share, layer),
    }


def mlp_seconds(config: Config, device: Device, share: Share, layer: int) -> dict[str, Passes]:
    """Return the seconds of a block's base MLP and experts, component by component."""
    model, tokens = config.model, share.sequences * config.train.seq_len
    D, base = model.dim, model.base_width
    seconds: dict[str, Passes] = {}
    if base:
        num_inputs = model.matrices_per_mlp - 1
        products = product_seconds(device, tokens, [(D, base)] * num_inputs + [(base, D)])
        activation = _activation_seconds(device, tokens * base, num_inputs)
        seconds["base_mlp"] = Passes(
            products.forward + activation.forward, products.backward + activation.backward
        )
    if not model.experts_per_layer[layer]:
        return seconds
    seconds["router"] = Passes(ROUTER / 2, ROUTER / 2)
    if EXPERT_BACKENDS[expert_backend_on(config, device)].is_fused:
        return seconds | _fused_expert_seconds(model, device, share, layer, tokens)
    return seconds | _expert_seconds(model, device, share, layer, tokens)


def product_seconds(device: Device, rows: float, shapes: list[tuple[int, int]]) -> Passes:
    """Return the seconds of products of (rows, I) matrices with weights of shapes (I, O).

    Casting the weights is included.
    """
    forward = backward = 0.0
    for inner, outer in shapes:
        cast = (FLOAT32 + BFLOAT16) * inner * outer / device.bytes
        numbers = rows * (inner + outer) + inner * outer
        computing = 2 * rows * inner * outer / device.flops
        moving = BFLOAT16 * numbers / (COPY_SHARE * device.bytes)
        product = max(computing, moving)
        forward, backward = forward + product + cast, backward + 2 * product + cast
    return Passes(forward, backward)


def _expert_seconds(
    model: ModelConfig, device: Device, share: Share, layer: int, tokens: int
) -> dict[str, Passes]:
    """Return the seconds of a layer's experts if each matrix takes one grouped product."""
    D, width, matrices = model.dim, model.expert_widths[layer], model.matrices_per_mlp
    rows = tokens * routed_rows(model, layer) * share.imbalance
    used = tokens * share.imbalance * expected_experts(model, layer)
    weights = layer_expert_weights(model, layer)
    computing = GROUPED_FACTOR * 2 * used * D * width / device.flops
    numbers = used * (D + width) + weights / matrices / share.expert_parallel
    moving = BFLOAT16 * numbers / device.bytes
    products = matrices * (GROUPED_START + max(computing, moving))
    cast = _cast_seconds(device, share, weights)
    dispatched = 2 * BFLOAT16 * rows * D / device.bytes
    combined = BFLOAT16 * (rows + 1.5 * tokens) * D / device.bytes
    return {
        "dispatch": Passes(DISPATCH / 2 + dispatched, DISPATCH / 2 + dispatched),
        "expert_gemms": Passes(products + cast, 2 * products + cast),
        "activation": _activation_seconds(device, rows * width, matrices - 1),
        "combine": Passes(combined, combined),
    }


def _fused_expert_seconds(
    model: ModelConfig, device: Device, share: Share, layer: int, tokens: int
) -> dict[str, Passes]:
    """Return the seconds of experts whose activation is computed inside the matrix products.

    With one slot per token these kernels also bring the results back to their tokens.
    """
    D, width, matrices = model.dim, model.expert_widths[layer], model.matrices_per_mlp
    slots, weights = routed_rows(model, layer), layer_expert_weights(model, layer)
    rows = tokens * share.imbalance * slots
    used = tokens * share.imbalance * expected_experts(model, layer)
    computing = 2 * matrices * used * D * width / device.flops
    read = weights / share.expert_parallel
    moving = BFLOAT16 * (used * (2 * D + (matrices + 1) * width) + read) / device.bytes
    moving_back = BFLOAT16 * (used * (6 * D + 3 * matrices * width) + 3 * read) / device.bytes
    forward = 2 * FUSED_START + max(FUSED_FORWARD * computing, moving)
    backward = 3 * FUSED_START + max(FUSED_BACKWARD * 2 * computing, moving_back)
    cast = _cast_seconds(device, share, weights)
    gathering = FUSED_START + 2 * BFLOAT16 * rows * D / device.bytes
    products = {"expert_gemms": Passes(forward + cast, backward + cast)}
    if slots == 1:
        return products | {"dispatch": Passes(gathering + FUSED_START, gathering)}
    combining = FUSED_START + BFLOAT16 * (rows + tokens) * D / device.bytes
    return products | {
        "dispatch": Passes(gathering + FUSED_START, 2 * gathering),
        "combine": Passes(combining, combining),
    }


def _cast_seconds(device: Device, share: Share, weights: int) -> float:
    """Return the seconds of casting the device's share of a layer's expert weights."""
    return (FLOAT32 + BFLOAT16) * weights * share.experts / device.bytes


def _activation_seconds(device: Device, numbers: float, num_inputs: int) -> Passes:
    """Return the seconds of an elementwise activation with `numbers` results.

    Forward reads every input and writes one result. Backward reads every input and the result's
    gradient, and writes a gradient for every input.
    """
    return Passes(
        BFLOAT16 * numbers * (num_inputs + 1) / device.bytes,
        BFLOAT16 * numbers * (2 * num_inputs + 1) / device.bytes,
    )


def _attention_seconds(config: Config, device: Device, tokens: int) -> float:
    """Return the seconds of one layer's attention without projections, forward and backward.

    Between the measured head widths, the time is interpolated linearly in the logarithm of the
    width. Outside of their range, it is that of the nearest measured width.
    """
    model, length = config.model, config.train.seq_len
    keys = length / 2
    if config.data.document_masking:
        inside = DOCUMENT_TOKENS * (
            1 - DOCUMENT_TOKENS / length * (1 - math.exp(-length / DOCUMENT_TOKENS))
        )
        keys = min(keys, inside + HALF_A_BLOCK)
    measured = sorted(ATTENTION_SECONDS)
    width = min(max(model.head_width, measured[0]), measured[-1])
    low = max(candidate for candidate in measured if candidate <= width)
    high = min(candidate for candidate in measured if candidate >= width)
    weight = math.log(width / low) / math.log(high / low) if high > low else 0.0
    seconds = ATTENTION_SECONDS[low] + weight * (ATTENTION_SECONDS[high] - ATTENTION_SECONDS[low])
    size = tokens * model.num_heads * model.head_width / ATTENTION_NUMBERS
    for_keys = ATTENTION_WITHOUT_KEYS + (1 - ATTENTION_WITHOUT_KEYS) * keys / ATTENTION_KEYS
    return seconds * size * for_keys * H100_FLOPS / device.flops
