"""What a step of decoding has to read."""

from typing import Any

import pytest
import torch

from moebius.config import ModelConfig
from moebius.model.transformer import Transformer, seeded

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "dim": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
}
KEYS = 2 * 2 * 2 * 16 * 4  # keys and values of 2 layers, 2 heads of 16, in float32


def weights(model: Transformer, *left_out: torch.Tensor) -> int:
    absent = {id(tensor) for tensor in left_out}
    return sum(p.nbytes for p in model.parameters() if id(p) not in absent)


def test_a_dense_model_reads_all_but_the_embedding(script):
    model = seeded(0, ModelConfig(**SHAPE, num_experts=0, base_expansion=2.0))
    read = script("generate").bytes_read(model, 3, 10, torch.float32)
    assert read == weights(model, model.embedding.weight) + 3 * 10 * KEYS


def test_a_tied_head_is_read(script):
    dense = {**SHAPE, "num_experts": 0, "base_expansion": 2.0}
    model = seeded(0, ModelConfig(**dense, tie_embeddings=True))
    assert script("generate").bytes_read(model, 1, 0, torch.float32) == weights(model)


@pytest.mark.parametrize(("batch", "share"), [(1, 0.25), (2, 1 - 0.75**2), (1000, 1.0)])
def test_few_texts_need_some_of_the_experts(script, batch, share):
    model = seeded(0, ModelConfig(**SHAPE, num_experts=4, router_top_k=1, use_mtp=True))
    assert model.mtp is not None
    experts = [p for n, p in model.layers.named_parameters() if ".experts." in n]
    drafting = list(model.mtp.parameters())
    rest = weights(model, model.embedding.weight, *experts, *drafting)
    read = script("generate").bytes_read(model, batch, 0, torch.float32)
    assert read == pytest.approx(rest + share * sum(p.nbytes for p in experts))
