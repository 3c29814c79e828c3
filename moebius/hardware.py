"""What a configuration says about the hardware. No torch here."""

from dataclasses import dataclass
from typing import Literal

from moebius.fields import at_least, check_fields


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model is laid out on the hardware. Nothing here changes what is computed."""

    expert_backend: Literal["auto", "loop", "grouped", "triton"] = "auto"
    """How the experts are run; the summary says what auto chose and why."""
    attention_backend: Literal["auto", "sdpa", "flex"] = "auto"
    """sdpa runs anywhere; flex (compiled, GPU) skips the blocks that document masking hides."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """Recompute in backward: nothing, whole blocks, or all but the results of matrix products and attention."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile each block; auto: on a GPU."""
    loss_chunks: int = 1
    """Parts in which the LM head's loss and its gradient are computed: with more there are fewer logits at a time."""

    def __post_init__(self) -> None:
        check_fields("parallel", self)
        at_least("parallel", self, "loss_chunks", 1)
