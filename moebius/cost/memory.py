"""Bytes that a training step needs on one device, computed from the configuration alone.

docs/log/plans.md compares the results with peaks measured on a GPU.
"""

from dataclasses import dataclass

from moebius.config import MTP_OFFSETS, Config
from moebius.config.optimizers import OPTIMIZERS
from moebius.cost.activations import Activations
from moebius.cost.counts import expert_weights, hidden_weights, parameters
from moebius.cost.sizes import FLOAT32


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
) -> Memory:
    """Return the bytes that a training step needs on one device.

    item is the size in bytes of a number in a matrix product: 2 for bfloat16, 4 for float32.
    compiled says whether the blocks are compiled. share is what the device holds of the run; by
    default it holds all of it. experts is the name of the expert backend, a key of
    `EXPERT_BACKENDS`.
    """
    model = config.model
    share = share or Share.whole(config)
    tokens = share.sequences * config.train.seq_len
    layers = range(model.num_layers)
    per_token = Activations(model, item, compiled, share.imbalance, experts)
    blocks = [per_token.of_block(layer) for layer in layers]
    kept = blocks
    match config.parallel.activation_checkpointing:
        case "full":
            kept = [FLOAT32 * model.dim] * model.num_layers
        case "selective":
            kept = [per_token.of_products(layer) for layer in layers]
    head = tokens * (FLOAT32 + item) * model.dim + _logits(config, tokens, item, compiled)
    mtp_passes = len(MTP_OFFSETS) * (head + tokens * per_token.of_mlps(model.num_layers - 1))
    stored = _stored_parameters(config, share)
    return Memory(
        weights=FLOAT32 * stored,
        gradients=FLOAT32 * stored,
        optimizer=FLOAT32 * stored * _moments(config),
        casts=_casts(config, item, share),
        activations=tokens * sum(kept),
        recomputed=0.0 if kept is blocks else tokens * max(blocks),
        logits=head + (mtp_passes if model.use_mtp else 0.0),
        backward=tokens * max(per_token.of_backward(layer) for layer in layers),
        gathered=_gathered(config, item, share),
        is_accumulating=share.passes > 1,
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
