"""Compare weights, gradients and moments with real ones, and peaks with peaks on an H100."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from moebius.config import Config, ParallelConfig, TrainConfig
from moebius.config.files import read_config
from moebius.cost.counts import expert_weights, parameters
from moebius.cost.memory import Memory, Share, memory
from moebius.model.transformer import lookahead, seeded
from moebius.train.optimizer import build_optimizers
from tests.cost.test_counts import V, small


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "use_mtp": True,
            "base_expansion": 2.0,
            "residual_mix": "learned",
            "tie_embeddings": True,
        },
    ],
    ids=str,
)
def test_weights_gradients_and_moments_are_exact(changes, optimizer):
    model = small(**changes)
    config = Config(model=model, train=TrainConfig(optimizer=optimizer, batch_size=2, seq_len=8))
    transformer = seeded(0, model)
    torch.manual_seed(0)
    transformer.loss(torch.randint(1, V, (2, 8 + lookahead(model)))).total.backward()
    optimizers = build_optimizers(transformer, config.train)
    for each in optimizers:
        each.step()
    needed = memory(config, item=4, compiled=False)
    weights = list(transformer.parameters())
    assert needed.weights == sum(weight.nbytes for weight in weights)
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    assert needed.gradients == sum(gradient.nbytes for gradient in gradients)
    moments = [
        value.nbytes
        for each in optimizers
        for state in each.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim > 0
    ]
    assert needed.optimizer == pytest.approx(sum(moments))


HELD_OUT = """switch --train.batch_size=32 --train.micro_batch_size=16 --model.num_layers=12
    --model.num_experts=8 --model.dim=1024 --model.num_heads=16 --model.num_kv_heads=4"""
RECOMPUTED = """standard --train.batch_size=8 --train.seq_len=4096 --model.num_layers=16
    --model.num_heads=7 --model.num_kv_heads=7 --model.head_dim=128 --model.vocab_size=32768
    --model.num_experts=8 --model.router_top_k=2 --model.moe_min_expansion=1.5
    --model.moe_max_expansion=1.5 --parallel.activation_checkpointing=full"""
"""Configurations that were not used to fit any constant."""

MEASURED: list[tuple[list[str], str, float]] = [
    (["standard", "--train.batch_size=16"], "triton", 38.84),
    (["standard", "--train.batch_size=16"], "grouped", 45.23),
    (["standard", "--train.batch_size=16", "--model.num_layers=12"], "grouped", 25.0),
    (["dense", "--train.batch_size=16"], "triton", 33.81),
    (["pr_moe", "--train.batch_size=16"], "triton", 54.32),
    ([*HELD_OUT.split()], "triton", 37.59),
    ([*RECOMPUTED.split()], "triton", 11.27),
    (["stability", "--train.batch_size=8"], "triton", 33.54),
    ([*HELD_OUT.split()], "grouped", 41.21),
]
"""Configuration, expert backend, and peak in GB of a compiled step in bfloat16, measured by
`moebius profile` on an H100 80GB with torch 2.11."""


@pytest.mark.parametrize(("arguments", "experts", "gigabytes"), MEASURED, ids=str)
def test_the_peak_is_the_measured_one(arguments, experts, gigabytes):
    preset, *flags = arguments
    if not any("micro" in flag for flag in flags):
        flags.append("--train.micro_batch_size=0")
    needed = memory(read_config(preset, flags), item=2, compiled=True, experts=experts)
    assert needed.peak / 1e9 == pytest.approx(gigabytes, rel=0.02)


def config_of(**changes: Any) -> Config:
    return Config(model=small(**changes), train=TrainConfig(batch_size=8, seq_len=16))


def test_the_parts_add_up_to_the_peak():
    for config in (config_of(), config_of(use_mtp=True, num_experts=(0, 3), base_expansion=1.0)):
        for passes in (1, 2):
            needed = memory(config, 4, False, Share(4, passes))
            assert sum(needed.parts().values()) == pytest.approx(needed.peak)


SIZES: dict[str, float] = {
    "weights": 1.0,
    "optimizer": 2.0,
    "gathered": 0.25,
    "casts": 0.5,
    "logits": 1.0,
    "gradients": 4.0,
    "activations": 9.0,
    "recomputed": 0.0,
    "backward": 0.0,
}
ALWAYS = 1.0 + 2.0 + 0.25


def memory_of(changes: dict[str, float], is_accumulating: bool = False) -> Memory:
    """Return made-up sizes: the ones above, with some of them changed."""
    return Memory(**(SIZES | changes), is_accumulating=is_accumulating)


def test_the_peak_is_at_the_loss_or_in_the_backward_of_the_last_or_the_first_block():
    assert memory_of({}).peak == ALWAYS + 9.0 + 0.5 + 1.0
    assert memory_of({}, is_accumulating=True).peak == ALWAYS + 9.0 + 0.5 + 1.0 + 4.0
    assert memory_of({"activations": 1.0}).peak == ALWAYS + 4.0
    in_backward = {"recomputed": 2.0, "backward": 0.5}
    assert memory_of(in_backward).peak == ALWAYS + 9.0 + 0.5 + 2.5
    parts = memory_of(in_backward).parts()
    assert parts["recomputed"] == 2.0 and "logits" not in parts
    assert memory_of(in_backward | {"activations": 1.0}).peak == ALWAYS + 4.0 + 2.5


def test_half_a_micro_batch_halves_what_backward_keeps():
    config = config_of()
    whole, half = memory(config, 4, True), memory(config, 4, True, Share(4, 2))
    assert half.activations == whole.activations / 2 and half.logits == whole.logits / 2
    assert half.weights == whole.weights
    narrow, eager = memory(config, 2, True), memory(config, 4, False)
    assert narrow.activations < whole.activations < eager.activations


def test_by_default_the_experts_are_not_fused():
    config = config_of()
    assert memory(config, 2, True) == memory(config, 2, True, experts="grouped")
    fused = memory(config, 2, True, experts="triton")
    assert fused.activations < memory(config, 2, True).activations
    assert fused.backward > memory(config, 2, True).backward


def test_a_loss_in_parts_keeps_fewer_logits():
    config = config_of(vocab_size=5_000)
    config = replace(config, train=replace(config.train, seq_len=1024))
    whole, parts = (
        memory(replace(config, parallel=ParallelConfig(loss_chunks=chunks)), 2, True).logits
        for chunks in (1, 16)
    )
    assert parts < whole / 2


@pytest.mark.parametrize(
    ("compiled", "per_logit"), [(True, 2), (False, 2 * 2 + 2 * 4)], ids=["compiled", "eager"]
)
@pytest.mark.parametrize("chunks", [1, 4])
def test_the_logits_by_hand(compiled, per_logit, chunks):
    """The head's input in two formats, and the logits; in parts, also the kept gradients.

    Those are the gradients of the weight in float32 and in the format of the products, and of the
    input, twice, in the latter. A part has its logits and their gradient.
    """
    config = replace(config_of(), parallel=ParallelConfig(loss_chunks=chunks))
    D, V = config.model.dim, config.model.vocab_size
    tokens = config.train.batch_size * config.train.seq_len
    expected = per_logit * tokens * V
    if chunks > 1:
        expected = 2 * expected / chunks + (4 + 2) * V * D + 2 * 2 * tokens * D
    assert memory(config, 2, compiled).logits == expected + (4 + 2) * tokens * D


def test_recomputation_keeps_less():
    config = config_of()
    needed = {
        kind: memory(
            replace(config, parallel=ParallelConfig(activation_checkpointing=kind)), 2, True
        )
        for kind in ("none", "selective", "full")
    }
    kept = {kind: needed[kind].activations + needed[kind].recomputed for kind in needed}
    inputs = 4 * 2 * 8 * 16 * 32  # the inputs of both blocks; one block is recomputed as a whole
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


def test_masks_of_documents_are_counted_where_they_exist():
    """They do with torch's attention, and only inside of documents."""
    config = read_config("tiny", ["--train.seq_len=8192", "--train.batch_size=1"])
    one = replace(config, data=replace(config.data, document_masking=False))
    without = memory(config, 4, False, attention="flex")
    with_masks = memory(config, 4, False, attention="sdpa_expanded")
    assert memory(one, 4, False, attention="sdpa_expanded") == memory(one, 4, False) == without
    assert with_masks.activations == without.activations
    longer = read_config("tiny", ["--train.seq_len=32768", "--train.batch_size=1"])
    longer_masks = memory(longer, 4, False, attention="sdpa_expanded")
    assert longer_masks.backward == 4 * with_masks.backward >= 4 * 7 * 256 * 8192
    short = read_config("tiny", ["--train.seq_len=128", "--train.batch_size=64"])
    kept = memory(short, 4, False, attention="sdpa_expanded").activations
    masks = 4 * 128 * 128 * short.model.num_layers * Share.whole(short).sequences
    assert kept == memory(short, 4, False).activations + masks
