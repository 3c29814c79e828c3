"""What is known about each way of computing attention, without torch.

`parallel.attention_backend` is what users write: `sdpa` or `flex`. Which of torch's `sdpa` paths
runs depends on the device (moebius/hardware/backends.py). Implementations register under the
names below in moebius/model/attention.py.
"""

from dataclasses import dataclass

MASK_BLOCK = 256
"""Number of queries whose mask exists as a matrix at a time."""


@dataclass(frozen=True)
class AttentionRecord:
    """The properties of one attention backend that others depend on."""

    description: str
    """The backend in words, as the first lines of a run show it."""
    copies_kv_heads: bool = False
    """Each KV head is copied for the query heads that share it."""
    mask_block: int = 0
    """Largest number of queries whose mask exists as a matrix; 0 if that of none does."""
    kept_operators: tuple[str, ...] = ()
    """Names of the operators whose results selective checkpointing keeps for backward."""


_SDPA_OPERATORS = (
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
)

ATTENTION: dict[str, AttentionRecord] = {
    "sdpa_native": AttentionRecord(
        "sdpa with native GQA", mask_block=MASK_BLOCK, kept_operators=_SDPA_OPERATORS
    ),
    "sdpa_expanded": AttentionRecord(
        "sdpa with KV heads expanded",
        copies_kv_heads=True,
        mask_block=MASK_BLOCK,
        kept_operators=_SDPA_OPERATORS,
    ),
    "flex": AttentionRecord("flex", kept_operators=("flex_attention",)),
}
