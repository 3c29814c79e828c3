"""Rules about shapes that do not suit the device's kernels. Most of them time another shape."""

import math
from collections.abc import Iterator

import torch

from moebius.config import ModelConfig
from moebius.moe.float8 import ALIGNMENT
from moebius.profile import trials
from moebius.profile.case import Case
from moebius.profile.finding import Finding

# Matrix units and fused attention kernels work in tiles that are at least SMALL_HEAD wide.
SMALL_HEAD, LARGE_HEAD = 64, 128
VOCABULARY_TILE = 64
EXPERT_TILE = 128
ROW_TILE = 128
EMPTY_ROWS = 0.05  # share of the rows that a product computes


def small_heads(case: Case) -> Iterator[Finding]:
    """Report attention heads that are narrower than a tile, and so waste the rest of it.

    The prediction comes from the attention core alone, measured in both shapes. The proposed heads
    are wider and fewer, with as many weights in total, and keys and values keep their width as far
    as possible.
    """
    model = case.model
    shapes = _wider_heads(model)
    if model.head_width >= SMALL_HEAD or not shapes:
        return
    keys = model.num_kv_heads * model.head_width
    heads, kv_heads, width = min(
        shapes, key=lambda shape: (abs(shape[1] * shape[2] - keys), shape[2])
    )
    present = trials.attention(case.steps, model.num_heads, model.num_kv_heads, model.head_width)
    wider = trials.attention(case.steps, heads, kv_heads, width)
    ratio = trials.ratio(wider, present, case.steps.device)
    new_keys = kv_heads * width
    of_keys = f"stay {keys} wide" if new_keys == keys else f"become {new_keys} wide, from {keys}"
    yield case.finding(
        "small attention heads",
        f"{model.num_heads} heads of width {model.head_width}: the attention core is "
        f"{case.share('attention_core'):.0%} of the step, and {heads} heads of width {width} were "
        f"measured to take {ratio:.2f} of its time; keys and values {of_keys}",
        f"--model.num_heads={heads}",
        f"--model.num_kv_heads={kv_heads}",
        f"--model.head_dim={width}",
        attention_core=ratio,
    )


def _wider_heads(model: ModelConfig) -> list[tuple[int, int, int]]:
    """Return (query heads, KV heads, head width) of all wider heads with as many weights."""
    queries = model.num_heads * model.head_width
    return [
        (queries // width, kv_heads, width)
        for width in range(SMALL_HEAD, LARGE_HEAD + 1, 8)
        if queries % width == 0
        for kv_heads in range(1, queries // width + 1)
        if queries // width % kv_heads == 0
    ]


def vocabulary(case: Case) -> Iterator[Finding]:
    """Report a vocabulary that is not a multiple of a tile, which slows down the LM head."""
    size = case.model.vocab_size
    padded = math.ceil(size / VOCABULARY_TILE) * VOCABULARY_TILE
    if padded == size:
        return
    ratio = case.ratio_of_widths(padded, size)
    yield case.finding(
        f"a vocabulary that is no multiple of {VOCABULARY_TILE}",
        f"it has {size} ids; an LM head of {padded} was measured to take {ratio:.2f} of the time",
        f"--model.vocab_size={padded}",
        lm_head=ratio,
    )


def expert_width(case: Case) -> Iterator[Finding]:
    """Report experts whose width is not a multiple of a tile, which wastes part of a tile.

    Both widths are measured as one plain matrix product.
    """
    model = case.model
    narrow = min((width for width in model.expert_widths if width % EXPERT_TILE), default=0)
    if not narrow or not any(model.experts_per_layer) or case.steps.device.type == "cpu":
        return
    wide = math.ceil(narrow / EXPERT_TILE) * EXPERT_TILE
    ratio = case.ratio_of_widths(wide, narrow)
    off_tile = sum(width % EXPERT_TILE > 0 for width in model.expert_widths)
    if ratio < 1:
        yield case.finding(
            "expert widths off the tile size",
            f"in {off_tile} of {model.num_layers} layers the experts' width is no multiple of "
            f"{EXPERT_TILE}; {wide} was measured to take {ratio:.2f} of the time of {narrow}",
            f"--model.moe_min_expansion={wide / model.dim:g}",
            f"--model.moe_max_expansion={wide / model.dim:g}",
            expert_gemms=ratio,
        )


def padded_rows(case: Case) -> Iterator[Finding]:
    """Report that experts have few rows each, which leave large parts of their tiles empty.

    The products of a CPU have no tiles of that size.
    """
    train = case.config.train
    if case.steps.device.type == "cpu":
        return
    tokens = case.steps.micro_batch * train.seq_len
    counts = filter(None, case.model.experts_per_layer)
    rows = [tokens * used / count for used, count in zip(case.routed, counts, strict=True)]
    waste = sum(ROW_TILE / 2 / row for row in rows if row) / max(1, len(rows))
    if waste <= EMPTY_ROWS or train.accumulation_steps % 2:
        return
    of_float8 = (
        f"; FP8 fills up each expert's rows to a multiple of {ALIGNMENT}: about "
        f"{waste * ALIGNMENT / ROW_TILE:.1%} more rows"
        if train.expert_dtype == "float8"
        else ""
    )
    yield case.finding(
        "padding inside the experts' products",
        f"an expert has {rows[0]:.0f} rows in a micro-batch, in tiles of {ROW_TILE}: about "
        f"{waste:.0%} of them are empty{of_float8}",
        f"--train.micro_batch_size={2 * case.steps.micro_batch}",
        expert_gemms=(1 + waste / 2) / (1 + waste),
    )


def uneven_load(case: Case) -> Iterator[Finding]:
    """Report that an uneven load of the busiest layer's experts costs time.

    They are measured with the load that they had and with an even load. The profiled router is
    untrained; metrics.jsonl has the load of a real run.
    """
    stats = case.steps.result.stats[: case.model.num_layers]
    if not stats or not case.steps.backends.expert_record.has_static_rows:
        return
    shares = [layer.tokens_per_expert_E.max().item() / layer.tokens.item() for layer in stats]
    share = max(shares)
    load_E = stats[shares.index(share)].tokens_per_expert_E
    even = trials.experts(case.steps, torch.full_like(load_E, load_E.mean().item()))
    ratio = trials.ratio(even, trials.experts(case.steps, load_E), case.steps.device)
    if ratio < 1:
        yield case.finding(
            "an uneven load that costs time",
            f"the busiest expert has {share:.0%} of its layer's tokens; with an even load the "
            f"experts were measured to take {ratio:.2f} of the time",
            f"--model.aux_loss_coeff={10 * case.model.aux_loss_coeff or 0.1:g}",
            expert_gemms=ratio,
        )
