"""What several processes count together is what one would have counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import Config, ModelConfig, TrainConfig
from moebius.model.statistics import LayerStats, unflat
from moebius.model.transformer import routed_layers, seeded
from moebius.parallel.ranks import sum_over_ranks
from moebius.train import step
from moebius.train.state import TrainState
from moebius.train.step import CountsSoFar, train_step

RANKS, B = 2, 8
MODEL = ModelConfig(
    vocab_size=61, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, num_experts=3, moe_min_expansion=2, moe_max_expansion=2,
    base_expansion=1.0, router_bias_rate=0.01, aux_loss_scope="global_batch",
)  # fmt: skip
VARIANTS = {"top-1": MODEL, "sigmoid with MTP": replace(MODEL, router_type="sigmoid", use_mtp=True)}


def tokens_of(config: ModelConfig) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(61, (B, 20 if config.use_mtp else 17), generator=generator)


class Noted(CountsSoFar):
    """Leaves what a step was last balanced over."""

    last: Tensor

    def __call__(self, counts_X: Tensor) -> Tensor:
        Noted.last = super().__call__(counts_X)
        return Noted.last


def a_step(model: ModelConfig, tokens_BL: Tensor, micro_batches: int, is_broken: bool = False) -> dict[str, Any]:
    """What a training step leaves. Gradients are each rank's own: everything here is counted before the update."""
    size = len(tokens_BL)
    settings = TrainConfig(batch_size=size, micro_batch_size=size // micro_batches, seq_len=16, lr=0.1, warmup_steps=0)
    config = Config(model=model, train=settings)
    state = TrainState.new(seeded(0, model), config)
    if is_broken:
        state.model.lm_head.weight.data[0, 0] = torch.nan
    before = routed_layers(state.model)[0].router.weight_ED.detach().clone()
    result = train_step(state, tokens_BL, None, settings)
    return {
        "stats": [list(layer) for layer in result.stats],
        "biases": [layer.router.bias_E for layer in routed_layers(state.model)],
        "seen": Noted.last,
        "balance": result.balance_loss_M,
        "is_skipped": bool(result.is_skipped),
        "is_moved": not torch.equal(before, routed_layers(state.model)[0].router.weight_ED),
    }


def work(rank: int, folder: str) -> None:
    """A rank of its own; what it found is left in the folder."""
    torch.set_num_threads(1)
    step.CountsSoFar = Noted
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    mine = torch.tensor([rank + 1.0, 10.0])
    found: dict[str, Any] = {"sum": sum_over_ranks(mine), "mine": mine}
    for name, config in VARIANTS.items():
        found[name] = a_step(config, tokens_of(config).chunk(RANKS)[rank], micro_batches=2)
    found["broken"] = a_step(MODEL, tokens_of(MODEL).chunk(RANKS)[rank], 1, is_broken=rank == 1)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def alone(variant: str, micro_batches: int = 1) -> dict[str, Any]:
    """One process with the whole batch."""
    return a_step(VARIANTS[variant], tokens_of(VARIANTS[variant]), micro_batches)


@pytest.fixture(autouse=True)
def noted(monkeypatch):
    monkeypatch.setattr(step, "CountsSoFar", Noted)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found, each with half of the batch."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)  # pyright: ignore[reportPrivateImportUsage]
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_one_process_is_its_own_sum():
    counts = torch.tensor([1.0, 2.0])
    assert sum_over_ranks(counts) is counts


def test_every_rank_has_the_sum_and_keeps_its_own(ranks):
    for rank, found in enumerate(ranks):
        assert found["sum"].tolist() == [3.0, 20.0]
        assert found["mine"].tolist() == [rank + 1.0, 10.0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_are_of_all_ranks_and_micro_batches(ranks, variant):
    whole = alone(variant)
    for found in ranks:
        for ours, theirs in zip(found[variant]["stats"], whole["stats"], strict=True):
            for name, mine, expected in zip(LayerStats._fields, ours, theirs, strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4, msg=name)
    tokens = [LayerStats(*layer).tokens.item() for layer in ranks[0][variant]["stats"]]
    assert tokens == ([B * 16.0, B * 16.0, 3 * B * 16.0] if VARIANTS[variant].use_mtp else [B * 16.0, B * 16.0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_biases_are_one_processs_on_every_rank(ranks, variant):
    whole = alone(variant)
    for found in ranks:
        for ours, expected in zip(found[variant]["biases"], whole["biases"], strict=True):
            assert torch.equal(ours, expected) and ours.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_micro_batch_is_balanced_over_the_whole_batch(ranks, variant):
    whole = alone(variant)
    assert all(torch.equal(found[variant]["seen"], whole["seen"]) for found in ranks)


def test_ranks_balance_over_each_others_choices(ranks):
    """Two micro-batches a rank: the mean of the ranks' losses is that of one process with two micro-batches of both."""
    config, tokens_BL = VARIANTS["top-1"], tokens_of(VARIANTS["top-1"])
    quarters = tokens_BL.chunk(4)
    reordered = torch.cat([quarters[0], quarters[2], quarters[1], quarters[3]])  # rank 0 has the first two, rank 1 the others
    whole = a_step(config, reordered, micro_batches=2)
    together = torch.stack([found["top-1"]["balance"] for found in ranks]).mean(dim=0)
    torch.testing.assert_close(together, whole["balance"])


def test_what_is_broken_on_one_rank_is_skipped_on_all(ranks):
    for found in ranks:
        assert found["broken"]["is_skipped"] and not found["broken"]["is_moved"]
        assert not any(bias_E.any() for bias_E in found["broken"]["biases"])
        assert found["top-1"]["is_moved"] and not found["top-1"]["is_skipped"]


def test_figures_of_all_layers_travel_as_one():
    like = [LayerStats(*(torch.zeros(3 if index == 0 else (1, 3) if index < 3 else ()) for index in range(10)))] * 2
    figures_X = torch.arange(2 * (3 + 3 + 3 + 7), dtype=torch.float32)
    first, second = unflat(sum_over_ranks(figures_X), like)
    assert first.tokens_per_expert_E.tolist() == [0.0, 1.0, 2.0] and second.tokens == 31.0
