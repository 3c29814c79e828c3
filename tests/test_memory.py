"""Bytes: of weights, gradients and optimizer exactly, of the rest against what was measured on an H100 (docs/log.md)."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from moebius.config import Config, ParallelConfig, TrainConfig
from moebius.cost import parameters
from moebius.memory import Memory, Share, expert_weights, memory
from moebius.model.transformer import lookahead, seeded
from moebius.settings import read_config
from moebius.train.optimizer import build_optimizers
from tests.test_cost import V, small


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "changes", [{}, {"use_mtp": True, "base_expansion": 2.0, "residual_mix": "learned", "tie_embeddings": True}], ids=str
)
def test_weights_gradients_and_optimizer_are_exact(changes, optimizer):
    model = small(**changes)
    config = Config(model=model, train=TrainConfig(optimizer=optimizer, batch_size=2, seq_len=8))
    transformer = seeded(0, model)
    transformer.loss(torch.randint(1, V, (2, 8 + lookahead(model)))).total.backward()
    optimizers = build_optimizers(transformer, config.train)
    for each in optimizers:
        each.step()
    found = memory(config, item=4, compiled=False)
    weights = list(transformer.parameters())
    assert found.weights == sum(p.numel() * p.element_size() for p in weights)
    assert found.gradients == sum(p.grad.numel() * p.grad.element_size() for p in weights if p.grad is not None)
    moments = [
        value.numel() * value.element_size()
        for each in optimizers
        for state in each.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim > 0
    ]
    assert found.optimizer == pytest.approx(sum(moments))


HELD_OUT = """switch --train.batch_size=32 --train.micro_batch_size=16 --model.num_layers=12 --model.num_experts=8
    --model.dim=1024 --model.num_heads=16 --model.num_kv_heads=4"""

RECOMPUTED = """standard --train.batch_size=8 --train.seq_len=4096 --model.num_layers=16
    --model.num_heads=7 --model.num_kv_heads=7 --model.head_dim=128 --model.vocab_size=32768
    --model.num_experts=8 --model.router_top_k=2 --model.moe_min_expansion=1.5 --model.moe_max_expansion=1.5
    --parallel.activation_checkpointing=full"""

# peak of a compiled step in bfloat16, GB: `moebius profile` on an H100 80GB, torch 2.11; whether with our own kernels
MEASURED: list[tuple[list[str], bool, float]] = [
    (["standard", "--train.batch_size=16"], True, 38.84),
    (["standard", "--train.batch_size=16"], False, 45.23),
    (["standard", "--train.batch_size=16", "--model.num_layers=12"], False, 25.0),
    (["dense", "--train.batch_size=16"], True, 33.81),
    (["pr_moe", "--train.batch_size=16"], True, 54.32),
    ([*HELD_OUT.split()], True, 37.59),
    ([*RECOMPUTED.split()], True, 11.27),
    (["stability", "--train.batch_size=8"], True, 33.54),
    ([*HELD_OUT.split()], False, 41.21),
]


@pytest.mark.parametrize(("arguments", "own_kernels", "gigabytes"), MEASURED, ids=str)
def test_against_measured_peaks(arguments, own_kernels, gigabytes):
    preset, *flags = arguments
    micro = [] if any("micro" in flag for flag in flags) else ["--train.micro_batch_size=0"]
    found = memory(read_config(preset, [*flags, *micro]), item=2, compiled=True, own_kernels=own_kernels)
    assert found.peak / 1e9 == pytest.approx(gigabytes, rel=0.02)


def config_of(**changes: Any) -> Config:
    return Config(model=small(**changes), train=TrainConfig(batch_size=8, seq_len=16))


def test_the_parts_are_the_peak():
    for config in (config_of(), config_of(use_mtp=True, num_experts=(0, 3), base_expansion=1.0)):
        for passes in (1, 2):
            found = memory(config, 4, False, Share(4, passes))
            assert sum(found.parts().values()) == pytest.approx(found.peak)


def test_the_peak_is_at_the_loss_or_where_a_block_is_computed_again_or_at_the_end():
    some = {"weights": 1.0, "optimizer": 2.0, "casts": 0.5, "logits": 1.0, "gathered": 0.25, "backward": 0.0, "recomputed": 0.0}
    assert Memory(**some, gradients=4.0, activations=9.0, is_accumulating=False).peak == 3.25 + 10.5
    assert Memory(**some, gradients=4.0, activations=9.0, is_accumulating=True).peak == 3.25 + 14.5
    assert Memory(**some, gradients=4.0, activations=1.0, is_accumulating=False).peak == 3.25 + 4.0
    some |= {"recomputed": 2.0, "backward": 0.5}
    again = Memory(**some, gradients=4.0, activations=9.0, is_accumulating=False)
    assert again.peak == 3.25 + 12.0
    assert again.parts()["recomputed"] == 2.0 and "logits" not in again.parts()
    assert Memory(**some, gradients=4.0, activations=1.0, is_accumulating=False).peak == 3.25 + 6.5


def test_half_a_micro_batch_halves_what_backward_keeps():
    config = config_of()
    whole, half = memory(config, 4, True), memory(config, 4, True, Share(4, 2))
    assert half.activations == whole.activations / 2 and half.logits == whole.logits / 2
    assert half.weights == whole.weights
    assert memory(config, 2, True).activations < whole.activations < memory(config, 4, False).activations


def test_a_loss_in_parts_keeps_fewer_logits():
    config = config_of(vocab_size=5_000)
    config = replace(config, train=replace(config.train, seq_len=1024))
    whole, parts = (memory(replace(config, parallel=ParallelConfig(loss_chunks=chunks)), 2, True).logits for chunks in (1, 16))
    assert parts < whole / 2


def test_recomputation_keeps_less():
    config = config_of()
    found = {
        kind: memory(replace(config, parallel=ParallelConfig(activation_checkpointing=kind)), 2, True)
        for kind in ("none", "selective", "full")
    }
    kept = {kind: each.activations + each.recomputed for kind, each in found.items()}
    inputs = 4 * 2 * 8 * 16 * 32  # each block's, and one block whole while its backward runs
    assert inputs < kept["full"] < inputs + 0.6 * kept["none"]
    assert kept["full"] - inputs < kept["selective"]


def test_devices_share_weights_experts_and_rows():
    config = config_of(num_experts=(4, 4), use_mtp=True)
    whole = memory(config, 2, True)
    shared = memory(config, 2, True, Share(8, 1, shared=0.5, experts=0.25))
    experts = parameters(config.model)["experts"] + expert_weights(config.model)[-1]
    others = sum(parameters(config.model).values()) - experts
    assert shared.weights == 4 * (0.5 * others + 0.25 * experts)
    assert whole.gathered == 0 < shared.gathered
    uneven = memory(config, 2, True, Share(8, 1, imbalance=2.0))
    assert whole.activations < uneven.activations < 2 * whole.activations
