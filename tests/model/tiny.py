"""The small model of these tests. Every letter that names a dimension has a different size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moebius.config import ModelConfig
from moebius.model.transformer import Transformer, lookahead, seeded

B, S, D, V, N, G, H, E = 2, 7, 24, 53, 6, 3, 4, 5
NUM_LAYERS = 2
WIDTHS = (64, 128)  # hidden widths F of the experts: 3 * 24 and 4 * 24, rounded to 64

ROUTERS: dict[str, dict[str, Any]] = {
    "softmax_topk": {"router_type": "softmax_topk"},
    "softmax_top3": {"router_type": "softmax_topk", "router_top_k": 3},
    "switch": {"router_type": "switch", "capacity_factor": 0.8},
    "sigmoid": {"router_type": "sigmoid", "base_expansion": 1.0},
}


def tiny(**changes: Any) -> ModelConfig:
    shape = {
        "vocab_size": V,
        "dim": D,
        "num_layers": NUM_LAYERS,
        "num_heads": N,
        "num_kv_heads": G,
        "num_experts": E,
    }
    return ModelConfig(**{**shape, **changes})


def random_tokens(
    config: ModelConfig, batch: int = B, seq_len: int = S, seed: int = 0, lowest: int = 0
) -> Tensor:
    """Return tokens_BL: sequences, followed by the tokens that the loss looks ahead to."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        lowest, config.vocab_size, (batch, seq_len + lookahead(config)), generator=generator
    )


def decided(config: ModelConfig) -> Transformer:
    """Return a model in float64 whose routers send different tokens to different experts."""
    model = seeded(0, config).double()
    for name, parameter in model.named_parameters():
        if "router" in name:
            torch.nn.init.normal_(parameter)
    return model


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Make torch raise an error if the host waits for a GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; tied parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())
