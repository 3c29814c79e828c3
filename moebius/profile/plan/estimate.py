"""How long a compiled step in bfloat16 takes on a device that need not be there, component by component.

A product takes its FLOPs at the device's own rate, or its bytes if those take longer; elementwise work takes its bytes. What
no formula gives (the grouped product's start, how far attention is from its floor, bytes that kernels move beyond what they
must) are constants fitted to component times of `standard`, `pr_moe` and `dense` on an H100; docs/log.md has them beside
configurations that had no part in the fit.
"""

import math

from moebius.config import MTP_OFFSETS, Config, ModelConfig
from moebius.cost import parameters
from moebius.memory import WIDE, Share, expert_weights, routed_rows
from moebius.profile.devices import DEVICES, Device
from moebius.profile.floor import optimizer_bytes

ITEM = 2
DOCUMENT_TOKENS = 800  # a document, on average: a source file or a web page
GROUPED_START, GROUPED = 52e-6, 1.236  # seconds before a grouped product runs; its time over that of a plain one
OWN_START, OWN_FORWARD, OWN_BACKWARD = 10e-6, 1.21, 1.32  # of our own kernels, which have the activation in them
ATTENTION = {32: 2.46e-3, 64: 1.87e-3, 112: 1.85e-3, 128: 1.71e-3}  # forward and backward, 16 x 2048 tokens, heads of 896
WITHOUT_KEYS = 0.58  # of attention's time at 1024 keys a query: what does not depend on how many there are
NORM, NORM_WITH_BASE = 56, 104  # bytes a number of the stream and layer
ROTARY, EMBEDDING = 11, 90
ROUTER, DISPATCH = 240e-6, 150e-6  # seconds a layer, beside bytes
OPTIMIZER = 0.88  # of a copy's rate
WAITING, WAITING_ROUTED = 0.2e-3, 0.4e-3  # seconds a layer for the host
LAUNCHING, LAUNCHING_ROUTED = 2e-3, 4.5e-3  # seconds of the host's work a layer: a step is never shorter


def step_seconds(config: Config, device: Device, share: Share) -> dict[str, float]:
    """Of one step on one of the devices, by component; without communication."""
    model, passes = config.model, share.passes
    tokens = share.sequences * config.train.seq_len
    found: dict[str, float] = {}

    def add(name: str, seconds: float) -> None:
        found[name] = found.get(name, 0.0) + seconds * passes

    forward_again = config.parallel.activation_checkpointing
    for layer in range(model.num_layers):
        for name, (forward, backward) in _layer(config, device, layer, tokens, share).items():
            is_product = name in ("attention_core", "attention_projections", "expert_gemms", "base_mlp")
            again = forward_again == "full" or (forward_again == "selective" and not is_product)
            add(name, forward * (2 if again else 1) + backward)
    head = _head(config, device, tokens)
    add("lm_head", head)
    add("embedding", EMBEDDING * tokens * model.dim / device.bytes)
    if model.use_mtp:
        last = _mlps(config, device, model.num_layers - 1, tokens, share)
        add("mtp", len(MTP_OFFSETS) * (head + sum(sum(times) for times in last.values())))
    counts = parameters(model)
    held = share.shared * (sum(counts.values()) - counts["experts"]) + share.experts * counts["experts"]
    found["everything_else"] = (passes - 1) * 3 * WIDE * held / device.bytes  # gradients added up
    found["optimizer"] = optimizer_bytes(config) * held / (OPTIMIZER * device.bytes)
    found["waiting"] = _of_host(config, passes, WAITING, WAITING_ROUTED)
    launching = _of_host(config, passes, LAUNCHING, LAUNCHING_ROUTED)
    found["waiting"] += max(0.0, launching - sum(found.values()))
    return {name: seconds for name, seconds in found.items() if seconds}


def has_own_kernels(config: Config, device: Device) -> bool:
    """Whether the device would run the experts in moebius/kernels."""
    is_chosen = config.parallel.expert_backend in ("auto", "triton") and config.train.expert_dtype != "float8"
    return device.is_hopper and is_chosen and config.model.dim % 8 == 0


def experts_per_token(model: ModelConfig) -> list[float]:
    """By layer, the MTP layer's three passes last if it has one. A fresh sigmoid router's scores lie close around a half: a
    token has all experts if the threshold is below that, else about half of them."""
    used = [float(model.experts_per_token(count)) for count in model.experts_per_layer]
    if model.router_type == "sigmoid" and model.router_threshold >= 0.5:
        used = [each / 2 for each in used]
    return used + ([len(MTP_OFFSETS) * used[-1]] if model.use_mtp else [])


def _layer(config: Config, device: Device, layer: int, tokens: int, share: Share) -> dict[str, tuple[float, float]]:
    """Seconds forward and backward of each component of a block."""
    model = config.model
    query, heads = model.num_heads * model.head_width, model.num_kv_heads * model.head_width
    core = _attention_core(config, device, tokens)
    norm = NORM_WITH_BASE if model.base_width else NORM
    rotary = ROTARY * tokens * (query + heads) / device.bytes / 2
    projections = [(model.dim, query), (model.dim, heads), (model.dim, heads), (query, model.dim)]
    forward, backward = _products(device, tokens, projections)
    backward += 6 * ITEM * tokens * model.dim / device.bytes  # three gradients of one input, added up
    return {
        "norms": (norm * 0.6 * tokens * model.dim / device.bytes, norm * 0.4 * tokens * model.dim / device.bytes),
        "attention_projections": (forward, backward),
        "rotary": (rotary, rotary),
        "attention_core": (0.28 * core, 0.72 * core),
        **_mlps(config, device, layer, tokens, share),
    }


def _mlps(config: Config, device: Device, layer: int, tokens: int, share: Share) -> dict[str, tuple[float, float]]:
    """Of a block's second half."""
    model, found = config.model, {}
    D, base, width, count = model.dim, model.base_width, model.expert_widths[layer], model.experts_per_layer[layer]
    ups = [1] * (model.matrices_per_mlp - 1)
    if base:
        forward, backward = _products(device, tokens, [(D, base) for _ in ups] + [(base, D)])
        extra = _activation(device, tokens * base, len(ups))
        found["base_mlp"] = (forward + extra[0], backward + extra[1])
    if not count:
        return found
    found["router"] = (ROUTER / 2, ROUTER / 2)
    if has_own_kernels(config, device):
        return found | _own_kernels(model, device, layer, tokens, share)
    rows = tokens * routed_rows(model, layer) * share.imbalance  # of static shapes: all are moved
    used = tokens * share.imbalance * experts_per_token(model)[layer]
    weights = expert_weights(model)[layer]
    product = GROUPED * 2 * used * D * width / device.flops
    moved = ITEM * (used * (D + width) + weights / model.matrices_per_mlp / share.expert_parallel) / device.bytes
    products = model.matrices_per_mlp * (GROUPED_START + max(product, moved))
    cast = (WIDE + ITEM) * weights * share.experts / device.bytes
    bytes_moved = 2 * ITEM * rows * D / device.bytes
    found["dispatch"] = (DISPATCH / 2 + bytes_moved, DISPATCH / 2 + bytes_moved)
    found["expert_gemms"] = (products + cast, 2 * products + cast)
    found["activation"] = _activation(device, rows * width, len(ups))
    combined = ITEM * (rows + 1.5 * tokens) * D / device.bytes
    found["combine"] = (combined, combined)
    return found


def _own_kernels(model: ModelConfig, device: Device, layer: int, tokens: int, share: Share) -> dict[str, tuple[float, float]]:
    """The products with what is in them: at one expert a token they also bring results to their tokens."""
    D, matrices, width, weights = model.dim, model.matrices_per_mlp, model.expert_widths[layer], expert_weights(model)[layer]
    slots = routed_rows(model, layer)
    rows, used = (tokens * share.imbalance * each for each in (slots, experts_per_token(model)[layer]))
    flops = 2 * matrices * used * D * width / device.flops
    read = weights / share.expert_parallel
    moved = ITEM * (used * (2 * D + (matrices + 1) * width) + read) / device.bytes
    moved_back = ITEM * (used * (6 * D + 3 * matrices * width) + 3 * read) / device.bytes
    forward = 2 * OWN_START + max(OWN_FORWARD * flops, moved)
    backward = 3 * OWN_START + max(OWN_BACKWARD * 2 * flops, moved_back)
    cast = (WIDE + ITEM) * weights * share.experts / device.bytes
    gathered = OWN_START + 2 * ITEM * rows * D / device.bytes
    found = {"expert_gemms": (forward + cast, backward + cast)}
    if slots == 1:
        return found | {"dispatch": (gathered + OWN_START, gathered)}
    combined = OWN_START + ITEM * (rows + tokens) * D / device.bytes
    return found | {"dispatch": (gathered + OWN_START, 2 * gathered), "combine": (combined, combined)}


def _products(device: Device, rows: float, shapes: list[tuple[int, int]]) -> tuple[float, float]:
    """Forward and backward of products with weights of these shapes, and their weights' casts."""
    forward = backward = 0.0
    for inner, outer in shapes:
        cast = (WIDE + ITEM) * inner * outer / device.bytes
        numbers = rows * (inner + outer) + inner * outer
        once = max(2 * rows * inner * outer / device.flops, ITEM * numbers / (0.85 * device.bytes))
        forward, backward = forward + once + cast, backward + 2 * once + cast
    return forward, backward


def _activation(device: Device, numbers: float, ups: int) -> tuple[float, float]:
    """Reads what the products up gave, writes one; backward reads one more and writes as many."""
    return ITEM * numbers * (ups + 1) / device.bytes, ITEM * numbers * (2 * ups + 1) / device.bytes


def _attention_core(config: Config, device: Device, tokens: int) -> float:
    """Forward and backward of one layer. Between the head widths that were measured, linear in their logarithm."""
    model, length = config.model, config.train.seq_len
    keys = length / 2
    if config.data.document_masking:
        inside = DOCUMENT_TOKENS * (1 - DOCUMENT_TOKENS / length * (1 - math.exp(-length / DOCUMENT_TOKENS)))
        keys = min(keys, inside + 64)  # half a block of keys is read beside those of the document
    widths = sorted(ATTENTION)
    width = min(max(model.head_width, widths[0]), widths[-1])
    low = max(each for each in widths if each <= width)
    high = min(each for each in widths if each >= width)
    part = math.log(width / low) / math.log(high / low) if high > low else 0.0
    full = ATTENTION[low] + part * (ATTENTION[high] - ATTENTION[low])
    size = tokens * model.num_heads * model.head_width / (16 * 2048 * 896)
    return full * size * (WITHOUT_KEYS + (1 - WITHOUT_KEYS) * keys / 1024) * DEVICES["h100"].flops / device.flops


def _head(config: Config, device: Device, tokens: int) -> float:
    """Forward and backward of the LM head and its loss: three products, and the logits read, read again and written."""
    model = config.model
    forward, backward = _products(device, tokens, [(model.dim, model.vocab_size)])
    return forward + backward + 3 * ITEM * tokens * model.vocab_size / device.bytes


def _of_host(config: Config, passes: int, plain: float, routed: float) -> float:
    return passes * sum(routed if count else plain for count in config.model.experts_per_layer)
