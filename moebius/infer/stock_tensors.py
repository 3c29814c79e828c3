"""Our tensors and those of a stock architecture, each made from the other.

Every part of a model is described once, in both directions, so that a conversion can be checked by
going back. The stock names are those that every version of the transformers library reads.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moebius.cost.exports import (
    APERTUS,
    ERNIE,
    GLM4_MOE,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_NEXT,
)
from moebius.infer.stock_heads import Heads
from moebius.infer.stock_shape import StockShape

NEVER = -1e4
"""Choice bias of an expert that is never chosen. Scores are at most 1."""


class Part(NamedTuple):
    """One of our tensors and the stock tensors that are made from it."""

    own: str
    """Our name; empty for stock tensors that are the same in every model."""
    stock: tuple[str, ...]
    """The stock names."""
    to_stock: Callable[[Tensor], Sequence[Tensor]]
    """Return the stock tensors. Without an own tensor, the argument is ignored."""
    to_own: Callable[[Sequence[Tensor]], Tensor]
    """Return our tensor: the inverse."""


def parts(shape: StockShape, vocab_size: int) -> Iterator[Part]:
    """Yield all parts of the model, layer by layer.

    vocab_size: number of rows of the stock embedding and head. Ours may have more, for no token.
    """
    model = shape.model
    scale = 1.0 if model.tie_embeddings else math.sqrt(model.dim)
    yield Part(
        "embedding.weight",
        ("model.embed_tokens.weight",),
        lambda own: [own[:vocab_size] * scale],
        lambda stock: stock[0] / scale,
    )
    for layer in range(model.num_layers):
        yield from _attention(shape, layer)
        if layer in shape.dense_layers:
            mlp = f"model.layers.{layer}.mlp."
            yield from _mlp(shape, layer, mlp, model.base_width)
        else:
            yield from _mixture(shape, layer)
    yield _norm(shape, "norm.weight", "model.norm.weight")
    if not model.tie_embeddings:
        yield Part(
            "lm_head.weight", ("lm_head.weight",), lambda own: [own[:vocab_size]], _only_one
        )


def _only_one(stock: Sequence[Tensor]) -> Tensor:
    return stock[0]


def _scaled(own: str, stock: str, factor: float) -> Part:
    """Return a part whose stock tensor is a multiple of ours."""
    return Part(
        own, (stock,), lambda tensor: [tensor * factor], lambda tensors: tensors[0] / factor
    )


def _constant(stock: str, value: Tensor) -> Part:
    """Return a part that is the same in every model."""
    return Part("", (stock,), lambda own: [value], _only_one)


def _norm(shape: StockShape, own: str, stock: str) -> Part:
    """Return a norm's weight. Qwen3Next stores by how much it differs from 1."""
    offset = 1.0 if shape.architecture is QWEN3_NEXT else 0.0
    return Part(own, (stock,), lambda one: [one - offset], lambda other: other[0] + offset)


def _attention(shape: StockShape, layer: int) -> Iterator[Part]:
    model, architecture = shape.model, shape.architecture
    heads = Heads(model, architecture)
    own, stock = f"layers.{layer}.", f"model.layers.{layer}."
    attention = f"{stock}self_attn."
    names = ("attention_layernorm", "feedforward_layernorm")
    if architecture is not APERTUS:
        names = ("input_layernorm", "post_attention_layernorm")
    yield _norm(shape, f"{own}attention_norm.weight", f"{stock}{names[0]}.weight")
    yield _norm(shape, f"{own}moe_norm.weight", f"{stock}{names[1]}.weight")
    # A norm divides by the size of the whole stock head, which the zeros in it make smaller.
    factor = heads.query_factor
    projection = {"query": factor, "key": factor if model.qk_norm else 1.0}
    for side, name in (("query", "q"), ("key", "k")):
        weight = f"{own}attention.{side}.weight"
        if side == "query" and architecture is QWEN3_NEXT:
            yield _query_with_gate(heads, weight, f"{attention}q_proj.weight", projection[side])
        else:
            yield Part(
                weight,
                (f"{attention}{name}_proj.weight",),
                lambda tensor, by=projection[side]: [heads.spread(tensor) * by],
                lambda tensors, by=projection[side]: heads.gather(tensors[0]) / by,
            )
        if model.qk_norm:
            yield _head_norm(shape, heads, layer, side, 1.0 if side == "query" else 1 / factor)
    yield Part(
        f"{own}attention.value.weight",
        (f"{attention}v_proj.weight",),
        lambda tensor: [heads.widen(tensor)],
        lambda tensors: heads.narrow(tensors[0]),
    )
    doubled = 2.0 if architecture is QWEN3_NEXT else 1.0  # its gate of 0 lets a half through
    yield Part(
        f"{own}attention.output.weight",
        (f"{attention}o_proj.weight",),
        lambda tensor: [heads.widen(tensor.T.contiguous()).T.contiguous() * doubled],
        lambda tensors: heads.narrow(tensors[0].T.contiguous()).T.contiguous() / doubled,
    )
    if architecture is QWEN2_MOE:
        # Engines other than transformers always add a bias here.
        sizes = {"q": model.num_heads, "k": model.num_kv_heads, "v": model.num_kv_heads}
        for name, count in sizes.items():
            yield _constant(f"{attention}{name}_proj.bias", torch.zeros(count * heads.width))


def _query_with_gate(heads: Heads, own: str, stock: str, factor: float) -> Part:
    """Return the query projection of Qwen3Next: each head is followed by a gate, here of 0."""
    width = heads.width

    def to_stock(tensor: Tensor) -> list[Tensor]:
        query = (heads.spread(tensor) * factor).view(-1, width, tensor.shape[-1])
        return [torch.cat([query, torch.zeros_like(query)], dim=1).flatten(0, 1)]

    def to_own(tensors: Sequence[Tensor]) -> Tensor:
        query = tensors[0].view(-1, 2 * width, tensors[0].shape[-1])[:, :width]
        return heads.gather(query.flatten(0, 1)) / factor

    return Part(own, (stock,), to_stock, to_own)


def _head_norm(shape: StockShape, heads: Heads, layer: int, side: str, factor: float) -> Part:
    name = f"model.layers.{layer}.self_attn.{side[0]}_norm.weight"
    moved = _norm(shape, f"layers.{layer}.attention.{side}_norm.weight", name)
    return moved._replace(
        to_stock=lambda own: moved.to_stock(heads.spread_norm(own) * factor),
        to_own=lambda stock: heads.gather_norm(moved.to_own(stock)) / factor,
    )


def _mlp(
    shape: StockShape, layer: int, stock: str, width: int, factor: float = 1.0
) -> Iterator[Part]:
    """Yield the base MLP of a layer, padded to a width, with a factor on its output."""
    own, own_width = f"layers.{layer}.moe.base.", shape.model.base_width
    has_gate = shape.architecture.has_gate
    up = (f"{stock}up_proj.weight",)
    if shape.model.activation == "swiglu":
        yield _padded_rows(f"{own}gate.weight", (f"{stock}gate_proj.weight",), own_width, width)
    elif has_gate:
        up += (f"{stock}gate_proj.weight",)  # relu(x) * x is squared ReLU
    yield _padded_rows(f"{own}up.weight", up, own_width, width)
    yield Part(
        f"{own}down.weight",
        (f"{stock}down_proj.weight",),
        lambda tensor: [_padded(tensor, width, dim=1) * factor],
        lambda tensors: tensors[0][:, :own_width] / factor,
    )


def _padded_rows(own: str, stock: tuple[str, ...], own_width: int, width: int) -> Part:
    return Part(
        own,
        stock,
        lambda tensor: [_padded(tensor, width, dim=0)] * len(stock),
        lambda tensors: tensors[0][:own_width],
    )


def _mixture(shape: StockShape, layer: int) -> Iterator[Part]:
    """Yield a layer's router, experts and base MLP."""
    model, architecture = shape.model, shape.architecture
    stock = f"model.layers.{layer}." + ("block_sparse_moe." if architecture is MIXTRAL else "mlp.")
    yield from _router(shape, layer, stock)
    if model.experts_per_layer[layer]:
        yield from _experts(shape, layer, stock)
    else:
        yield from _no_experts(shape, stock)
    if architecture in (QWEN2_MOE, QWEN3_NEXT):
        # The stock gate of 0 lets a half through.
        yield _constant(f"{stock}shared_expert_gate.weight", torch.zeros(1, model.dim))
        shared, factor = f"{stock}shared_expert.", 2.0
    else:
        shared, factor = f"{stock}shared_experts.", 1.0
    if model.base_width:
        yield from _mlp(shape, layer, shared, shape.shared_width, factor)
    elif architecture in (QWEN2_MOE, GLM4_MOE):  # always have a shared MLP, here of zeros
        width = shape.shared_width
        for name in ("gate", "up"):
            yield _constant(f"{shared}{name}_proj.weight", torch.zeros(width, model.dim))
        yield _constant(f"{shared}down_proj.weight", torch.zeros(model.dim, width))


def _router(shape: StockShape, layer: int, stock: str) -> Iterator[Part]:
    model, own = shape.model, f"layers.{layer}.moe.router."
    count, copies, total = model.experts_per_layer[layer], shape.copies(layer), shape.num_experts
    root = math.sqrt(model.dim)
    weight = Part(
        f"{own}weight_ED",
        (f"{stock}gate.weight",),
        lambda tensor: [_padded(tensor.repeat(copies, 1) / root, total, dim=0)],
        lambda tensors: tensors[0][:count] * root,
    )
    bias = Part(
        f"{own}bias_E",
        (f"{stock}gate.e_score_correction_bias",),
        lambda tensor: [_padded(tensor, total, dim=0, value=NEVER)],
        lambda tensors: tensors[0][:count],
    )
    if shape.architecture is ERNIE:
        bias = bias._replace(
            stock=(f"{stock}moe_statics.e_score_correction_bias",),
            to_stock=lambda tensor: [tensor.repeat(copies)[None] / copies],
            to_own=lambda tensors: tensors[0][0, :count] * copies,
        )
    elif shape.architecture is not GLM4_MOE:
        bias = bias._replace(
            stock=(), to_stock=lambda tensor: [], to_own=lambda tensors: torch.zeros(count)
        )
    if count:
        yield from (weight, bias)
        return
    yield _constant(weight.stock[0], torch.zeros(total, model.dim))
    if bias.stock:
        is_flat = shape.architecture is GLM4_MOE
        yield _constant(bias.stock[0], torch.zeros(total) if is_flat else torch.zeros(1, total))


def _experts(shape: StockShape, layer: int, stock: str) -> Iterator[Part]:
    """Yield the matrices of a layer's experts, which are separate tensors in stock files."""
    own = f"layers.{layer}.moe.experts."
    factor, width = shape.gate_factor(layer), shape.expert_width
    own_width = shape.model.expert_widths[layer]
    names = partial(_expert_names, shape, stock)
    make = partial(_expert_part, shape, layer)
    if shape.model.activation == "swiglu":
        yield make(
            f"{own}w_gate_EDF",
            names("gate"),
            lambda w_DF: _padded(w_DF.T, width, dim=0),
            lambda stock_FD: stock_FD[:own_width].T,
        )
        up = names("up")
    else:
        up = names("up") + names("gate")  # relu(x) * x is squared ReLU
    yield make(
        f"{own}w_up_EDF",
        up,
        lambda w_DF: _padded(w_DF.T, width, dim=0),
        lambda stock_FD: stock_FD[:own_width].T,
    )
    yield make(
        f"{own}w_down_EFD",
        names("down"),
        lambda w_FD: _padded(w_FD.T * factor, width, dim=1),
        lambda stock_DF: stock_DF[:, :own_width].T / factor,
    )


def _expert_part(
    shape: StockShape,
    layer: int,
    own: str,
    stock: tuple[str, ...],
    to_stock: Callable[[Tensor], Tensor],
    to_own: Callable[[Tensor], Tensor],
) -> Part:
    """Return the part of one matrix of all experts, from what happens to that of each expert.

    Experts that are repeated come one after another, and those that are never chosen are last. A
    matrix that the stock expert has twice has two series of names.
    """
    count, total = shape.model.experts_per_layer[layer], shape.num_experts
    copies, series = shape.copies(layer), len(stock) // total

    def all_to_stock(tensor: Tensor) -> list[Tensor]:
        once = [to_stock(matrix).contiguous() for matrix in tensor]
        unused = [torch.zeros_like(once[0])] * (total - count * copies)
        return (once * copies + unused) * series

    def all_to_own(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([to_own(tensor) for tensor in tensors[:count]])

    return Part(own, stock, all_to_stock, all_to_own)


def _no_experts(shape: StockShape, stock: str) -> Iterator[Part]:
    """Yield experts that add nothing, for a dense layer where the architecture has none."""
    D, width = shape.model.dim, shape.expert_width
    for name, size in (("gate", (width, D)), ("up", (width, D)), ("down", (D, width))):
        for expert in _expert_names(shape, stock, name):
            yield _constant(expert, torch.zeros(size))


def _expert_names(shape: StockShape, stock: str, name: str) -> tuple[str, ...]:
    """Return the names of one matrix (gate, up or down) of all experts of a stock layer."""
    of_mixtral = {"gate": "w1", "up": "w3", "down": "w2"}
    last = of_mixtral[name] if shape.architecture is MIXTRAL else f"{name}_proj"
    return tuple(f"{stock}experts.{expert}.{last}.weight" for expert in range(shape.num_experts))


def _padded(tensor: Tensor, size: int, dim: int, value: float = 0.0) -> Tensor:
    """Return the tensor with entries of `value` after its own, up to that size of a dimension."""
    missing = size - tensor.shape[dim]
    if not missing:
        return tensor
    return F.pad(tensor, [0, 0] * (tensor.dim() - 1 - dim) + [0, missing], value=value)
