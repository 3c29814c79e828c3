"""The KV cache: the keys and values of the tokens that a model has read, so that a new token reads
them instead of computing them again.

It is allocated once, for a number of slots W per sequence, and never grows. A token's slot is its
position. Sequences of different lengths need no padding: every sequence has positions of its own,
and a query sees the slots up to its position, whatever lies behind them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from moebius.config import ModelConfig


class LayerCache(NamedTuple):
    """The cache of one layer, as one forward pass uses it."""

    key_BGWH: Tensor
    """Keys, normalized and rotated."""
    value_BGWH: Tensor
    """Values."""
    place: tuple[Tensor, Tensor, Tensor]
    """The sequence, KV head and slot at which each key of the pass is stored. Together they
    broadcast to (B, G, S)."""
    is_read: bool
    """Whether the pass attends to what the cache has; otherwise only to its own tokens."""

    def store(self, k_BGSH: Tensor, v_BGSH: Tensor) -> None:
        """Store the keys and values of the pass at their places."""
        self.key_BGWH.index_put_(self.place, k_BGSH)
        self.value_BGWH.index_put_(self.place, v_BGSH)


class KVCache:
    """Keys and values of all layers for B sequences of at most W tokens each."""

    def __init__(
        self,
        config: ModelConfig,
        num_sequences: int,
        num_slots: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        """Allocate the cache. dtype is that of the keys, which is the matrix products'."""
        shape = (num_sequences, config.num_kv_heads, num_slots, config.head_width)
        # Zeros, because attention multiplies what the mask hides by 0, and NaN * 0 is NaN.
        self._layers = [
            (
                torch.zeros(shape, device=device, dtype=dtype),
                torch.zeros(shape, device=device, dtype=dtype),
            )
            for _ in range(config.num_layers)
        ]
        self._head_G1 = torch.arange(config.num_kv_heads, device=device)[:, None]
        self._slot_W = torch.arange(num_slots, device=device)
        self.row_B = torch.arange(num_sequences, device=device)
        """The number of each sequence."""
        self.document_BW = torch.zeros(num_sequences, num_slots, device=device, dtype=torch.long)
        """Number of each token's document."""

    @property
    def num_slots(self) -> int:
        """Number of tokens of each sequence that there is room for (W)."""
        return len(self._slot_W)

    def layers(self, row_B: Tensor, position_BS: Tensor, is_read: bool) -> list[LayerCache]:
        """Return the cache of each layer for a pass over tokens at these positions.

        row_B: numbers of the sequences that the tokens belong to.
        """
        place = (row_B[:, None, None], self._head_G1, position_BS[:, None, :])
        return [LayerCache(*layer, place, is_read) for layer in self._layers]

    def store_documents(
        self, row_B: Tensor, position_BS: Tensor, document_BS: Tensor | None
    ) -> None:
        """Remember the tokens' documents. None stands for one document, whose number is 0."""
        # A number in place of zeros would be copied from the host, which a CUDA graph cannot do.
        number_BS = torch.zeros_like(position_BS) if document_BS is None else document_BS.long()
        self.document_BW[row_B[:, None], position_BS] = number_BS

    def mask(self, position_BS: Tensor) -> Tensor:
        """Return mask_B1SW, which is true where a token of a pass may see a slot.

        A token sees itself and the earlier tokens of its own document.
        """
        is_past = self._slot_W <= position_BS[..., None]
        own_BS = self.document_BW.gather(1, position_BS)
        return (is_past & (self.document_BW[:, None] == own_BS[..., None]))[:, None]
