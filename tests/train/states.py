"""States of a small model with experts, before and after some steps of training."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moebius.config import Config, ModelConfig, TrainConfig
from moebius.model.transformer import Transformer, seeded
from moebius.train.state import TrainState, model_tensors
from moebius.train.step import train_step

V, E = 61, 4
TRAIN = TrainConfig(steps=100, batch_size=2, seq_len=32, lr=1e-2, warmup_steps=0)
TOKENS = TRAIN.batch_size * TRAIN.seq_len
"""Number of tokens in a batch."""


def config_of(optimizer: Any = "adamw", **changes: Any) -> Config:
    """Return the configuration of a model with two routed layers, with some values replaced."""
    shape: dict[str, Any] = {
        "vocab_size": V,
        "dim": 48,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "num_experts": E,
        "moe_min_expansion": 2,
        "moe_max_expansion": 2,
    }
    model = ModelConfig(**(shape | changes))
    return Config(model=model, train=replace(TRAIN, optimizer=optimizer))


def tokens_of(config: Config, seed: int = 0) -> Tensor:
    """Return a batch of random tokens, which is always the same for a seed."""
    shape = (TRAIN.batch_size, TRAIN.seq_len + (4 if config.model.use_mtp else 1))
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def trained(config: Config, steps: int = 2) -> TrainState:
    """Return a state whose optimizers have seen gradients of every parameter."""
    state = TrainState.new(seeded(0, config.model), config)
    for step in range(steps):
        train_step(state, tokens_of(config, step), None, config.train)
    return state


def changed_names(before: dict[str, Tensor], model: Transformer) -> list[str]:
    """Return the names of the tensors of a model that have changed."""
    after = model_tensors(model)
    return [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
