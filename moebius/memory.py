"""Bytes that a training step needs on one device, counted from the configuration alone. No torch here.

What backward keeps is what torch's compiler keeps of a block (2.11 to 2.13): the stream before it, both norms' results, query,
key, value and result of attention, and of the MLPs their inputs, pre-activations, activation and result; weights stay as
copies in the products' type until backward has used them. Held against peaks measured on a GPU in docs/log.md.
"""

from dataclasses import dataclass

from moebius.config import MTP_OFFSETS, Config, ModelConfig
from moebius.cost import hidden_weights, parameters

WIDE = 4  # bytes of a weight, a gradient, a moment, of the residual stream
INDEX = 8


@dataclass(frozen=True)
class Share:
    """Of a run, what one device has: sequences in one forward pass, passes per step, its part of the weights outside of the
    experts and of the experts (with their gradients and moments), of how many devices' tokens it has an equal part of the
    experts, and routed rows beside those of an even load."""

    sequences: int
    passes: int = 1
    shared: float = 1.0
    experts: float = 1.0
    expert_parallel: int = 1
    imbalance: float = 1.0

    @classmethod
    def whole(cls, config: Config) -> "Share":
        """Of a run on one device."""
        return cls(config.train.batch_size // config.train.accumulation_steps, config.train.accumulation_steps)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. casts: copies of weights for the products; recomputed: what backward computes again of one block;
    backward: what one layer's backward needs besides; gathered: weights of one layer that other devices keep."""

    weights: float
    gradients: float
    optimizer: float
    casts: float
    activations: float
    recomputed: float
    logits: float
    backward: float
    gathered: float
    is_accumulating: bool

    @property
    def peak(self) -> float:
        """At the worst moment of a step."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """By name, at the worst of three moments: the loss, when all is kept and gradients are there only of earlier passes;
        the last block's backward, when what is computed again of it has taken the logits' place; the first one's, when all
        gradients are there."""
        kept = {"activations": self.activations, "casts": self.casts, "gradients": self.is_accumulating * self.gradients}
        of_backward = {"recomputed": self.recomputed, "backward": self.backward}
        moments = (kept | {"logits": self.logits}, kept | of_backward, of_backward | {"gradients": self.gradients})
        worst = max(moments, key=lambda parts: sum(parts.values()))
        found = {"weights": self.weights, "optimizer": self.optimizer, "gathered": self.gathered} | worst
        return {name: size for name, size in found.items() if size}


def memory(config: Config, item: int, compiled: bool, share: Share | None = None, own_kernels: bool = False) -> Memory:
    """Of a training step. item: bytes of a number in a matrix product; share: default, the whole run on one device;
    own_kernels: the experts', which keep no activation and no result."""
    model, train = config.model, config.train
    share = share or Share.whole(config)
    tokens = share.sequences * train.seq_len
    counts = parameters(model)
    mtp_experts = expert_weights(model)[-1] if model.use_mtp else 0
    experts = counts["experts"] + mtp_experts
    held = share.shared * (sum(counts.values()) - experts) + share.experts * experts
    muon = hidden_weights(model) / sum(counts.values()) if train.optimizer == "muon" else 0.0
    blocks = [_block(model, layer, item, compiled, share.imbalance, own_kernels) for layer in range(model.num_layers)]
    kept = blocks
    match config.parallel.activation_checkpointing:
        case "full":
            kept = [WIDE * model.dim] * model.num_layers
        case "selective":
            kept = [_products(model, layer, item, share.imbalance) for layer in range(model.num_layers)]
    head = tokens * (WIDE + item) * model.dim + _logits(config, tokens, item, compiled)
    last = _mlps(model, model.num_layers - 1, item, compiled, share.imbalance, own_kernels)
    mtp = len(MTP_OFFSETS) * (head + tokens * last)
    largest = max(expert_weights(model)[layer] * share.experts for layer in range(model.num_layers))
    return Memory(
        weights=WIDE * held,
        gradients=WIDE * held,
        optimizer=WIDE * held * (2 - muon),
        casts=_casts(config, item, share),
        activations=tokens * sum(kept),
        recomputed=0.0 if kept is blocks else tokens * max(blocks),
        logits=head + (mtp if model.use_mtp else 0.0),
        backward=tokens * max(_backward(model, layer, item, share.imbalance, own_kernels) for layer in range(model.num_layers)),
        gathered=(1 - share.shared) * 2 * item * ((sum(counts.values()) - experts) / model.num_layers + largest),
        is_accumulating=share.passes > 1,
    )


def expert_weights(model: ModelConfig) -> list[int]:
    """Of all experts of each layer."""
    shapes = zip(model.experts_per_layer, model.expert_widths, strict=True)
    return [count * model.matrices_per_mlp * model.dim * width for count, width in shapes]


def routed_rows(model: ModelConfig, layer: int) -> float:
    """Rows a token has in a layer's experts: shapes are static, so a sigmoid router's has one for each expert."""
    count = model.experts_per_layer[layer]
    return float(count if model.router_type == "sigmoid" else model.experts_per_token(count))


def _block(model: ModelConfig, layer: int, item: int, compiled: bool, imbalance: float, own_kernels: bool) -> float:
    """Bytes a token that backward keeps of a whole block."""
    D, query, heads = model.dim, model.num_heads * model.head_width, model.num_kv_heads * model.head_width
    if not compiled:
        heads = query  # the fused kernels that take a mask want as many key and value heads
    attention = WIDE * D + item * (D + 2 * query + 2 * heads) + WIDE * model.num_heads + item * D
    if model.qk_norm:
        attention += item * (query + heads)
    if not compiled:
        attention += WIDE * 2 * D + item * (query + heads)  # the stream after attention, inputs of the rotation
    return attention + _mlps(model, layer, item, compiled, imbalance, own_kernels)


def _mlps(model: ModelConfig, layer: int, item: int, compiled: bool, imbalance: float, own_kernels: bool) -> float:
    """Bytes a token of a block's second half."""
    D, matrices = model.dim, model.matrices_per_mlp
    rows, count = routed_rows(model, layer) * imbalance, model.experts_per_layer[layer]
    kept = matrices if compiled else matrices + 1  # eager code keeps the activation beside its product with the gate
    both = 2 if model.base_width and count else 1
    routing = (3 * WIDE * count + 2 * INDEX * rows) if count else 0.0
    of_row = 2 * D + kept * model.expert_widths[layer]
    if own_kernels:
        of_row = (D if routed_rows(model, layer) == 1 else 0) + (matrices - 1) * model.expert_widths[layer]
    return item * (both * D + kept * model.base_width + rows * of_row) + routing


def _products(model: ModelConfig, layer: int, item: int, imbalance: float) -> float:
    """Bytes a token of what selective checkpointing keeps of a block: the results of products and attention."""
    D, query, heads = model.dim, model.num_heads * model.head_width, model.num_kv_heads * model.head_width
    rows, results = routed_rows(model, layer) * imbalance, model.matrices_per_mlp - 1
    mlps = results * (model.base_width + rows * model.expert_widths[layer]) + (rows + bool(model.base_width)) * D
    return WIDE * (D + model.num_heads) + item * (2 * query + 2 * heads + D + mlps)


def _backward(model: ModelConfig, layer: int, item: int, imbalance: float, own_kernels: bool) -> float:
    """Bytes a token of the widest gradients that a block's backward has at once."""
    rows, made = routed_rows(model, layer) * imbalance, 3 if own_kernels else 2
    return item * (rows * (model.dim + made * model.expert_widths[layer]) + 2 * model.base_width) + 2 * WIDE * model.dim


def _logits(config: Config, tokens: int, item: int, compiled: bool) -> float:
    """Compiled, the gradient takes the logits' place; else there are float32 ones and their gradient too. Of a loss in parts
    there are one part's, and the gradients of the head's weight and input instead."""
    vocab_size, chunks = config.model.vocab_size, config.parallel.loss_chunks
    logits = vocab_size * tokens / chunks * (item if compiled else 2 * item + 2 * WIDE)
    if chunks == 1:
        return logits
    return 2 * logits + (WIDE + item) * vocab_size * config.model.dim + 2 * item * tokens * config.model.dim


def _casts(config: Config, item: int, share: Share) -> float:
    """Copies of the weights, until backward has used them. Of other devices' weights none outlive their layer."""
    if item == WIDE or config.parallel.activation_checkpointing == "full":
        return 0.0
    counts = parameters(config.model)
    heads = 1 + (len(MTP_OFFSETS) if config.model.use_mtp else 0)
    head = heads * config.model.vocab_size * config.model.dim
    shared = counts["attention"] + counts["base_mlp"] + counts["mtp"]
    return item * (head + (share.shared * shared + share.experts * counts["experts"]))
