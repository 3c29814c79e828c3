"""The `parallel` section: how a run uses the hardware."""

from dataclasses import dataclass
from typing import Literal

from moebius.config.fields import NonNegativeInt, PositiveInt, check_fields


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model is laid out on the hardware. Nothing here changes what is computed."""

    replicate: NonNegativeInt = 0
    """Number of copies of the weights, each with its own part of the batch. replicate * shard is
    the number of processes that torchrun starts. 0 means as many as there are."""
    shard: PositiveInt = 1
    """Number of processes that store each copy of the weights in parts, as FSDP does."""
    expert: PositiveInt = 1
    """Number of processes that split each layer's experts between them and exchange tokens. They
    are among those of replicate * shard, and train on different sequences."""
    timeout: PositiveInt = 600
    """Seconds after which a process that waits for the others gives up."""
    expert_backend: Literal["auto", "loop", "grouped", "triton"] = "auto"
    """How the experts are computed. loop runs anywhere, grouped uses torch's grouped matrix
    products, triton Moebius's own kernels. The first lines of a run say what auto chose and
    why."""
    attention_backend: Literal["auto", "sdpa", "flex"] = "auto"
    """How attention is computed. sdpa runs anywhere; flex (compiled, on a GPU) skips the blocks
    that document masking hides."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """What backward computes again to save memory: nothing, whole blocks, or everything but the
    results of matrix products and attention."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile each block. auto: on a GPU."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Run each forward and backward pass as a CUDA graph, which the host starts with one call.
    auto: where launching its kernels takes the host at least half of the pass."""
    loss_chunks: PositiveInt = 1
    """Number of parts in which the LM head's loss and gradient are computed. With more parts,
    fewer logits are in memory at a time."""

    def __post_init__(self) -> None:
        check_fields("parallel", self)
