"""The small models of these tests, and a function that runs one step of them under a layout."""

from dataclasses import replace

import torch
from torch import Tensor

from moebius.config import ModelConfig, ParallelConfig
from moebius.hardware.backends import choose_backends
from moebius.model.loss import Loss
from moebius.model.transformer import Transformer, seeded
from moebius.parallel.layout import lay_out

CPU = torch.device("cpu")
V = 67
SMALL = ModelConfig(
    vocab_size=V,
    dim=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    num_experts=5,
    base_expansion=1.0,
    expert_dropout=0.2,
)
VARIANTS = {
    "top-2": replace(SMALL, router_top_k=2, router_z_loss_coeff=0.01),
    "sigmoid with MTP": replace(SMALL, router_type="sigmoid", use_mtp=True),
    "switch": replace(SMALL, router_type="switch", capacity_factor=1.0, residual_mix="learned"),
}


def tokens_of(batch: int = 2, length: int = 13) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(1))


def laid_out(config: ModelConfig, parallel: ParallelConfig) -> Transformer:
    model = seeded(0, config, choose_backends(parallel))
    lay_out(model, parallel, CPU)
    return model


def loss_and_gradients(
    config: ModelConfig, parallel: ParallelConfig
) -> tuple[Loss, dict[str, Tensor]]:
    """Return the loss of a model under a layout, and the gradient of every parameter by name."""
    model = laid_out(config, parallel)
    torch.manual_seed(2)  # recomputation must draw the same dropout again
    loss = model.loss(tokens_of(), end_of_text=3)
    loss.total.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return loss, gradients
