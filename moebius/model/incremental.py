"""Run a model token by token with a KV cache. `Transformer.hidden` is the readable reference.

Neither function computes routing statistics.
"""

import torch
from torch import Tensor

from moebius.model.cache import KVCache, LayerCache
from moebius.model.rope import Rotation, rotation, rotation_at
from moebius.model.transformer import Transformer


def new_cache(
    model: Transformer, num_sequences: int, num_slots: int, dtype: torch.dtype | None = None
) -> KVCache:
    """Return an empty cache on the model's device.

    dtype: that of the matrix products under autocast; None means the dtype of the weights.
    """
    weight = model.embedding.weight
    return KVCache(model.config, num_sequences, num_slots, weight.device, dtype or weight.dtype)


def fill(
    model: Transformer,
    cache: KVCache,
    tokens_BS: Tensor,
    document_BS: Tensor | None = None,
    row_B: Tensor | None = None,
) -> Tensor:
    """Read the beginnings of sequences, at positions 0 to S - 1; return hidden_BSD.

    hidden_BSD is the residual stream before the final norm. Shorter sequences are padded at their
    end, with any token: the next token of such a sequence is given to `step` with the position
    that its first padding has, and overwrites it.
    row_B: numbers of the sequences in the cache that are read anew. None means all of them.
    """
    row_B = cache.row_B if row_B is None else row_B
    S = tokens_BS.shape[1]
    position_BS = torch.arange(S, device=tokens_BS.device).expand(len(tokens_BS), S)
    cache.store_documents(row_B, position_BS, document_BS)
    angles = rotation(S, model.config, tokens_BS.device, model.embedding.weight.dtype)
    layers = cache.layers(row_B, position_BS, is_read=False)
    return _through(model, tokens_BS, angles, model.attention_mask(document_BS), layers)


def step(
    model: Transformer,
    cache: KVCache,
    tokens_BS: Tensor,
    position_BS: Tensor,
    document_BS: Tensor | None = None,
) -> Tensor:
    """Read the next tokens of every sequence, at these positions; return hidden_BSD.

    position_BS: slots of the tokens. What lies in earlier slots was read before. A later call may
    give the same positions again, which takes back what was read there.
    """
    cache.store_documents(cache.row_B, position_BS, document_BS)
    angles = rotation_at(position_BS, model.config, model.embedding.weight.dtype)
    layers = cache.layers(cache.row_B, position_BS, is_read=True)
    return _through(model, tokens_BS, angles, cache.mask(position_BS), layers)


def _through(
    model: Transformer,
    tokens_BS: Tensor,
    angles: Rotation,
    mask: Tensor | None,
    layers: list[LayerCache],
) -> Tensor:
    """Return hidden_BSD, the residual stream behind the last layer."""
    hidden_BSD = model.embed(tokens_BS)
    for layer, cache in zip(model.layers, layers, strict=True):
        hidden_BSD, _ = layer(hidden_BSD, angles, mask, cache)
    return hidden_BSD
