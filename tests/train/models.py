"""A small model that has every kind of parameter, and a function that trains it."""

import torch
from torch import nn

from moebius.config import ModelConfig
from moebius.model.transformer import Transformer, seeded

VOCABULARY = 61


def small_model(tie_embeddings: bool = False) -> Transformer:
    """Return a model with norms, routers, residual mixes, base MLPs, experts and an MTP layer."""
    config = ModelConfig(
        vocab_size=VOCABULARY,
        dim=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        qk_norm=True,
        num_experts=3,
        moe_min_expansion=2.0,
        moe_max_expansion=4.0,
        base_expansion=2.0,
        residual_mix="learned",
        use_mtp=True,
        tie_embeddings=tie_embeddings,
    )
    return seeded(0, config)


def take_steps(model: Transformer, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    """Train the model on two random sequences per step, with the step's number as the seed."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens_BL = torch.randint(VOCABULARY, (2, 20), generator=generator)
        model.loss(tokens_BL).total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies of named tensors, which later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def are_equal(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two models have the same weights, bit by bit."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)
