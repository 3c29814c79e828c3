"""Bytes that a training step needs on one device, computed from the configuration alone.

docs/log/plans.md compares the results with peaks measured on a GPU.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from moebius.config import MTP_OFFSETS, Config
from moebius.config.attention import ATTENTION
from moebius.config.optimizers import OPTIMIZERS
from moebius.cost.activations import Activations
from moebius.cost.counts import expert_weights, hidden_weights, parameters
from moebius.cost.sizes import FLOAT32

MASK_BYTES = 3
"""Bytes of truth values for each pair of a query and a key while a mask is made."""


@dataclass(frozen=True)
class Share:
    """The share of a run that one device holds."""

    sequences: int
    """Number of sequences in one forward pass on this device."""
    passes: int = 1
    """Number of forward passes per optimizer step."""
    shared: float = 1.0
    """Fraction of the parameters outside of the experts that this device stores, with their
    gradients and moments."""
    experts: float = 1.0
    """Fraction of the experts' parameters that this device stores, with their gradients and
    moments."""
    expert_parallel: int = 1
    """Number of devices that split each layer's experts between them."""
    imbalance: float = 1.0
    """Rows that this device's experts compute, divided by those of an even load."""

    @classmethod
    def whole(cls, config: Config) -> "Share":
        """Return the share of a device that runs the whole configuration alone."""
        passes = config.train.accumulation_steps
        return cls(config.train.batch_size // passes, passes)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    """The optimizer's moments."""
    casts: float
    """Copies of weights in the dtype of the matrix products."""
    activations: float
    """What is kept of the forward pass for backward."""
    recomputed: float
    """Activations of one block that backward computes again, with activation checkpointing."""
    logits: float
    """The LM head's input, its logits and their gradients."""
    backward: float
    """Gradients of activations that exist during the backward pass of one block."""
    gathered: float
    """Weights that other devices store, gathered for the layers that are being computed."""
    is_accumulating: bool
    """Whether a step has several forward passes, so that the gradients of the earlier passes
    exist during the later ones."""

    @property
    def peak(self) -> float:
        """Bytes at the worst moment of a step."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Return the bytes by name at the worst moment of a step; they add up to `peak`.

        Three moments may be the worst: the loss, when all activations are kept; the backward of
        the last block, when what it computes again has taken the place of the logits; and the
        backward of the first block, when the gradients of all weights exist.
        """
        kept = {
            "activations": self.activations,
            "casts": self.casts,
            "gradients": self.is_accumulating * self.gradients,
        }
        in_backward = {"recomputed": self.recomputed, "backward": self.backward}
        moments = (
            kept | {"logits": self.logits},
            kept | in_backward,
            in_backward | {"gradients": self.gradients},
        )
        worst = max(moments, key=lambda parts: sum(parts.values()))
        always = {
            "weights": self.weights,
            "optimizer": self.optimizer,
            "gathered": self.gathered,
        }
        return {name: size for name, size in (always | worst).items() if size}


def memory(
    config: Config,
    item: int,
    compiled: bool,
    share: Share | None = None,
    experts: str = "grouped",
    attention: str = "flex",
) -> Memory:
    """Return the bytes that a training step needs on one device.

    item is the size in bytes of a number in a matrix product: 2 for bfloat16, 4 for float32.
    compiled says whether the blocks are compiled. share is what the device holds of the run; by
    default it holds all of it. experts is the name of the expert backend, a key of
    `EXPERT_BACKENDS`, and attention that of the attention backend, a key of `ATTENTION`.
    """
    model = config.model
    share = share or Share.whole(config)
    tokens = share.sequences * config.train.seq_len
    per_token = Activations(model, item, compiled, share.imbalance, experts)
    layers = _summed(per_token)
    recomputing = config.parallel.activation_checkpointing
    kept = {
        "none": layers.blocks,
        "full": FLOAT32 * model.dim * model.num_layers,
        "selective": layers.products,
    }[recomputing]
    block, masks = _masks(config, item, attention)
    head = tokens * (FLOAT32 + item) * model.dim + _logits(config, tokens, item, compiled)
    mtp_passes = len(MTP_OFFSETS) * (head + tokens * per_token.of_mlps(model.num_layers - 1))
    stored = _stored_parameters(config, share)
    return Memory(
        weights=FLOAT32 * stored,
        gradients=FLOAT32 * stored,
        optimizer=FLOAT32 * stored * _moments(config),
        casts=_casts(config, item, share),
        activations=tokens * (kept + (0.0 if recomputing == "full" else masks)),
        recomputed=0.0 if recomputing == "none" else tokens * layers.largest_block,
        logits=head + (mtp_passes if model.use_mtp else 0.0),
        backward=tokens * max(layers.largest_backward, block),
        gathered=_gathered(config, item, share),
        is_accumulating=share.passes > 1,
    )


def _masks(config: Config, item: int, attention: str) -> tuple[float, float]:
    """Return the bytes per token that masks of documents take in two places.

    The first is in the backward pass of a block with a long sequence, where one block of queries
    has a mask at a time, beside the gradients of query, key and value. The second is what all
    layers keep for backward, which are masks only for sequences that are not longer than a block.
    """
    model, queries = config.model, ATTENTION[attention].mask_block
    if not (queries and config.data.document_masking):
        return 0.0, 0.0
    length = config.train.seq_len
    if length <= queries:
        return 0.0, float(item * length * model.num_layers)
    gradients = 3 * item * model.num_heads * model.head_width
    return float((item + MASK_BYTES) * queries + gradients), 0.0


class _Layers(NamedTuple):
    """Bytes per token of all layers, which do not depend on how a run is laid out."""

    blocks: float
    """Sum of what backward keeps of each block."""
    products: float
    """Sum of what selective checkpointing keeps of each block."""
    largest_block: float
    largest_backward: float
    """The widest gradients that exist at once in the backward pass of a block."""


@lru_cache(maxsize=64)  # a plan compares thousands of layouts of one model
def _summed(per_token: Activations) -> _Layers:
    layers = range(per_token.model.num_layers)
    blocks = [per_token.of_block(layer) for layer in layers]
    return _Layers(
        blocks=sum(blocks),
        products=sum(per_token.of_products(layer) for layer in layers),
        largest_block=max(blocks),
        largest_backward=max(per_token.of_backward(layer) for layer in layers),
    )


def _split_parameters(config: Config) -> tuple[int, int]:
    """Return the number of parameters outside of the experts, and the number in the experts.

    The MTP layer's experts are counted with the experts.
    """
    model, counts = config.model, parameters(config.model)
    experts = counts["experts"] + (expert_weights(model)[-1] if model.use_mtp else 0)
    return sum(counts.values()) - experts, experts


def _stored_parameters(config: Config, share: Share) -> float:
    """Return the number of parameters that the device stores."""
    others, experts = _split_parameters(config)
    return share.shared * others + share.experts * experts


def _moments(config: Config) -> float:
    """Return the mean number of moments that the optimizer keeps per parameter."""
    optimizer = OPTIMIZERS[config.train.optimizer]
    hidden = hidden_weights(config.model) / sum(parameters(config.model).values())
    return optimizer.moments + (optimizer.hidden_moments - optimizer.moments) * hidden


def _logits(config: Config, tokens: int, item: int, compiled: bool) -> float:
    """Return the bytes of the logits and of the gradients that the LM head's loss keeps.

    In compiled code the gradient takes the place of the logits. Eager code also has logits in
    float32, and gradients in both dtypes. A loss that is computed in parts has the logits of one
    part at a time, but keeps the gradients of the LM head's weight and input.
    """
    D, V, chunks = config.model.dim, config.model.vocab_size, config.parallel.loss_chunks
    logits = V * tokens / chunks * (item if compiled else 2 * item + 2 * FLOAT32)
    if chunks == 1:
        return logits
    return 2 * logits + (FLOAT32 + item) * V * D + 2 * item * tokens * D


def _casts(config: Config, item: int, share: Share) -> float:
    """Return the bytes of the weights' copies in the products' dtype, kept until backward.

    There are none if the products are in float32, or if whole blocks are computed again. Copies
    of weights that other devices store are not kept longer than their layer runs.
    """
    if item == FLOAT32 or config.parallel.activation_checkpointing == "full":
        return 0.0
    model, counts = config.model, parameters(config.model)
    heads = 1 + (len(MTP_OFFSETS) if model.use_mtp else 0)
    head = heads * model.vocab_size * model.dim
    shared = counts["attention"] + counts["base_mlp"] + counts["mtp"]
    return item * (head + (share.shared * shared + share.experts * counts["experts"]))


def _gathered(config: Config, item: int, share: Share) -> float:
    """Return the bytes of the weights that are gathered from other devices.

    Two layers' weights exist at once, because FSDP2 gathers the next layer's weights while a layer
    computes.
    """
    model = config.model
    others, _ = _split_parameters(config)
    largest_experts = max(weights * share.experts for weights in expert_weights(model))
    return (1 - share.shared) * 2 * item * (others / model.num_layers + largest_experts)
