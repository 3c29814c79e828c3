"""Bytes per token that blocks keep for backward, and that backward needs in addition.

What a block keeps is what torch's compiler (2.11 to 2.13) keeps of it: the residual stream before
the block, the results of both norms, attention's query, key, value and result, and the inputs,
pre-activations, activations and results of the MLPs.
"""

from dataclasses import dataclass

from moebius.config import ModelConfig
from moebius.config.expert_backends import EXPERT_BACKENDS
from moebius.cost.sizes import FLOAT32, INT64


def routed_rows(model: ModelConfig, layer: int) -> float:
    """Return how many rows per token the experts of a layer process.

    Shapes are static, so there is a row for every expert that a token may have, used or not.
    """
    return float(model.experts_per_token(model.experts_per_layer[layer]))


@dataclass(frozen=True)
class Activations:
    """Bytes per token in the blocks of a model; every method counts one layer's block."""

    model: ModelConfig
    item: int
    """Bytes of a number in a matrix product."""
    compiled: bool
    """Whether the blocks are compiled."""
    imbalance: float
    """Rows of the device's experts, divided by those of an even load."""
    experts: str
    """Name of the expert backend, a key of `EXPERT_BACKENDS`."""

    def of_block(self, layer: int) -> float:
        """Return the bytes per token that backward keeps of a whole block."""
        model, item = self.model, self.item
        D, N = model.dim, model.num_heads
        query = N * model.head_width
        # The fused kernels that eager code uses with a mask need as many KV heads as query heads.
        key = model.num_kv_heads * model.head_width if self.compiled else query
        attention = FLOAT32 * D + item * (D + 2 * query + 2 * key) + FLOAT32 * N + item * D
        if model.qk_norm:
            attention += item * (query + key)
        if not self.compiled:  # the stream after attention, and the inputs of the rotation
            attention += FLOAT32 * 2 * D + item * (query + key)
        return attention + self.of_mlps(layer)

    def of_mlps(self, layer: int) -> float:
        """Return the bytes per token that backward keeps of a block's base MLP and experts."""
        model, matrices = self.model, self.model.matrices_per_mlp
        D, width, count = model.dim, model.expert_widths[layer], model.experts_per_layer[layer]
        rows = routed_rows(model, layer) * self.imbalance
        # Eager code also keeps the activation before it is multiplied by the gate matrix's result.
        hidden = matrices if self.compiled else matrices + 1
        inputs = 2 if model.base_width and count else 1
        routing = (3 * FLOAT32 * count + 2 * INT64 * rows) if count else 0.0
        per_row = 2 * D + hidden * width
        if self._is_fused:
            # With one slot per token, rows are kept in the experts' order and not gathered again.
            kept_input = D if routed_rows(model, layer) == 1 else 0
            per_row = kept_input + (matrices - 1) * width
        return self.item * (inputs * D + hidden * model.base_width + rows * per_row) + routing

    def of_products(self, layer: int) -> float:
        """Return the bytes per token that selective checkpointing keeps of a block.

        These are the results of matrix products and of attention.
        """
        model = self.model
        D, N = model.dim, model.num_heads
        query, key = N * model.head_width, model.num_kv_heads * model.head_width
        rows, results = routed_rows(model, layer) * self.imbalance, model.matrices_per_mlp - 1
        hidden = results * (model.base_width + rows * model.expert_widths[layer])
        outputs = (rows + bool(model.base_width)) * D
        mlps = hidden + outputs
        return FLOAT32 * (D + N) + self.item * (2 * query + 2 * key + D + mlps)

    def of_backward(self, layer: int) -> float:
        """Return the bytes per token of the widest gradients that exist at once in backward."""
        model, hidden = self.model, 3 if self._is_fused else 2
        rows = routed_rows(model, layer) * self.imbalance
        per_row = model.dim + hidden * model.expert_widths[layer]
        return self.item * (rows * per_row + 2 * model.base_width) + 2 * FLOAT32 * model.dim

    @property
    def _is_fused(self) -> bool:
        return EXPERT_BACKENDS[self.experts].is_fused
