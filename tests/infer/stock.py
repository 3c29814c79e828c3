"""Small models of ours and of transformers, for the tests of exports and imports."""

from typing import Any

import torch

from moebius.config import ModelConfig
from moebius.model.transformer import Transformer
from moebius.train.state import model_tensors

V, S = 97, 24


def model_config(**changes: Any) -> ModelConfig:
    """Return a model of three layers, with some settings changed."""
    settings: dict[str, Any] = {
        "vocab_size": V,
        "dim": 64,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "num_experts": 4,
        "router_top_k": 2,
        "moe_min_expansion": 1.0,
        "moe_max_expansion": 3.0,
    }
    return ModelConfig(**(settings | changes))


def transformer(config: ModelConfig, bias: float = 0.0) -> Transformer:
    """Return a model whose norms and routers matter, with choice biases of about `bias`."""
    torch.manual_seed(0)
    model = Transformer(config).eval()
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("weight_ED"):
                tensor.mul_(10)
            elif name.endswith("bias_E"):
                tensor.normal_().mul_(bias)
    return model


def tokens(batch_size: int = 3) -> torch.Tensor:
    """Return random tokens."""
    return torch.randint(V, (batch_size, S), generator=torch.Generator().manual_seed(1))
