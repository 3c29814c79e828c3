"""Several processes together measure and update the same as a single process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from moebius.config import Config, ModelConfig, TrainConfig
from moebius.model.transformer import routed_layers, seeded
from moebius.moe.statistics import LayerStats, unflat
from moebius.parallel.placement import Placement
from moebius.parallel.ranks import sum_over_ranks
from moebius.train import step
from moebius.train.state import TrainState
from moebius.train.step import CountsSoFar, train_step

RANKS, B, S = 2, 8, 16
MODEL = ModelConfig(
    vocab_size=61,
    dim=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    num_experts=3,
    moe_min_expansion=2,
    moe_max_expansion=2,
    base_expansion=1.0,
    router_bias_rate=0.01,
    aux_loss_scope="global_batch",
)
VARIANTS = {
    "top-1": MODEL,
    "sigmoid with MTP": replace(MODEL, router_type="sigmoid", use_mtp=True),
}


UNEQUAL = replace(MODEL, use_mtp=True, aux_loss_coeff=0.0, router_z_loss_coeff=0.1)
END = 0


def tokens_of(config: ModelConfig) -> Tensor:
    """Return a batch of random tokens, which is the same every time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(61, (B, S + (4 if config.use_mtp else 1)), generator=generator)


class NotedCounts(CountsSoFar):
    """Counts that remember the last ones that a micro-batch was balanced over."""

    last: Tensor
    """The counts of the last micro-batch, kept in the class."""

    def __call__(self, counts_X: Tensor) -> Tensor:
        NotedCounts.last = super().__call__(counts_X)
        return NotedCounts.last


def unequal_tokens() -> Tensor:
    """Return tokens of which the first process has one long document per sequence.

    The other process has documents of one token, which have no targets but the next token.
    """
    tokens_BL = tokens_of(UNEQUAL).clamp(min=1)
    tokens_BL[B // 2 :] = END
    return tokens_BL


def measure_step(
    model: ModelConfig,
    tokens_BL: Tensor,
    micro_batches: int,
    is_broken: bool = False,
    separator: int | None = None,
) -> dict[str, Any]:
    """Return what the first training step measures and changes.

    `is_broken` sets a weight to NaN.
    """
    size = len(tokens_BL)
    settings = TrainConfig(
        batch_size=B, micro_batch_size=size // micro_batches, seq_len=S, lr=0.1, warmup_steps=0
    )
    config = Config(model=model, train=settings)
    state = TrainState.new(seeded(0, model), config)
    if is_broken:
        state.model.lm_head.weight.data[0, 0] = torch.nan
    before = routed_layers(state.model)[0].router.weight_ED.detach().clone()
    result = train_step(state, tokens_BL, separator, settings)
    return {
        "stats": [list(layer) for layer in result.stats],
        "biases": [layer.router.bias_E for layer in routed_layers(state.model)],
        "seen": NotedCounts.last,
        "balance": result.balance_loss_M,
        "loss": result.loss,
        "mtp_loss": torch.zeros(()) if result.mtp_loss is None else result.mtp_loss,
        "z_loss": result.z_loss_M,
        "grad_norm": result.grad_norm,
        "weights": [weight.detach() for weight in state.model.parameters()],
        "is_skipped": bool(result.is_skipped),
        "is_moved": not torch.equal(before, routed_layers(state.model)[0].router.weight_ED),
    }


def work(rank: int, folder: str) -> None:
    """Run one of several processes, and save its measurements in the folder."""
    torch.set_num_threads(1)
    step.CountsSoFar = NotedCounts
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    values = torch.tensor([rank + 1.0, 10.0])
    measured: dict[str, Any] = {"sum": sum_over_ranks(values), "values": values}
    for name, config in VARIANTS.items():
        measured[name] = measure_step(
            config, tokens_of(config).chunk(RANKS)[rank], micro_batches=2
        )
    measured["unequal"] = measure_step(
        UNEQUAL, unequal_tokens().chunk(RANKS)[rank], micro_batches=2, separator=END
    )
    measured["broken"] = measure_step(
        MODEL, tokens_of(MODEL).chunk(RANKS)[rank], 1, is_broken=rank == 1
    )
    torch.save(measured, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def alone(variant: str, micro_batches: int = 1) -> dict[str, Any]:
    """Return the measurements of one process with the whole batch."""
    return measure_step(VARIANTS[variant], tokens_of(VARIANTS[variant]), micro_batches)


def alone_in_two(variant: str) -> dict[str, Any]:
    """Return the measurements of one process that takes both processes' parts as micro-batches."""
    quarters = tokens_of(VARIANTS[variant]).chunk(4)  # the first process has the first two
    in_order = torch.cat([quarters[0], quarters[2], quarters[1], quarters[3]])
    return measure_step(VARIANTS[variant], in_order, micro_batches=2)


@pytest.fixture(autouse=True)
def counts_are_noted(monkeypatch):
    """Let the steps of this process record their counts, too."""
    monkeypatch.setattr(step, "CountsSoFar", NotedCounts)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """Return the measurements of two processes, each with half of the batch."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_one_process_is_its_own_sum():
    counts = torch.tensor([1.0, 2.0])
    assert sum_over_ranks(counts) is counts
    layer = torch.nn.Linear(2, 1)
    layer(counts).backward()
    Placement().sum_gradients(layer)
    assert layer.weight.grad is not None and torch.equal(layer.weight.grad[0], counts)


def test_every_rank_has_the_sum_and_keeps_its_own_values(ranks):
    for rank, measured in enumerate(ranks):
        assert measured["sum"].tolist() == [3.0, 20.0]
        assert measured["values"].tolist() == [rank + 1.0, 10.0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_are_of_all_ranks_and_micro_batches(ranks, variant):
    whole = alone(variant)
    for measured in ranks:
        for layer, expected in zip(measured[variant]["stats"], whole["stats"], strict=True):
            for name, value, expected_value in zip(
                LayerStats._fields, layer, expected, strict=True
            ):
                torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=1e-4, msg=name)
    tokens = [LayerStats(*layer).tokens.item() for layer in ranks[0][variant]["stats"]]
    assert tokens == [B * S, B * S, *([3 * B * S] if VARIANTS[variant].use_mtp else [])]


@pytest.mark.parametrize("variant", VARIANTS)
def test_biases_are_the_same_as_with_one_process_on_every_rank(ranks, variant):
    whole = alone(variant)
    for measured in ranks:
        for bias_E, expected_E in zip(measured[variant]["biases"], whole["biases"], strict=True):
            assert torch.equal(bias_E, expected_E) and bias_E.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_micro_batch_is_balanced_over_the_whole_batch(ranks, variant):
    whole = alone(variant)
    assert all(torch.equal(measured[variant]["seen"], whole["seen"]) for measured in ranks)


def test_ranks_balance_over_each_others_choices(ranks):
    whole = alone_in_two("top-1")
    for measured in ranks:
        torch.testing.assert_close(measured["top-1"]["balance"], whole["balance"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradient_norms_are_global(ranks, variant):
    whole = alone_in_two(variant)
    for measured in ranks:
        for name in ("loss", "mtp_loss", "grad_norm"):
            torch.testing.assert_close(measured[variant][name], whole[name], msg=name)
    assert (whole["mtp_loss"] > 0) == VARIANTS[variant].use_mtp


def test_processes_with_unequal_numbers_of_targets_add_up_to_one(ranks):
    """The mean of both processes' means would be half of the first one's MTP loss."""
    whole = measure_step(UNEQUAL, unequal_tokens(), micro_batches=1, separator=END)
    for measured in ranks:
        for name in ("loss", "mtp_loss", "z_loss", "grad_norm"):
            torch.testing.assert_close(measured["unequal"][name], whole[name], msg=name)
    assert whole["mtp_loss"] > 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_processes_make_the_update_of_one(ranks, variant):
    whole, (first, second) = alone_in_two(variant), (measured[variant] for measured in ranks)
    for weight, peers_weight, expected in zip(
        first["weights"], second["weights"], whole["weights"], strict=True
    ):
        assert torch.equal(weight, peers_weight)
        # Adam's first step is the sign of the gradient, which for tiny gradients is rounding
        # error.
        is_close = torch.isclose(weight, expected, rtol=1e-3, atol=1e-3)
        assert is_close.float().mean() > 0.99


def test_an_update_that_is_broken_on_one_rank_is_skipped_on_all(ranks):
    for measured in ranks:
        broken, good = measured["broken"], measured["top-1"]
        assert broken["is_skipped"] and not broken["is_moved"]
        assert not any(bias_E.any() for bias_E in broken["biases"])
        assert good["is_moved"] and not good["is_skipped"]


def test_the_figures_of_all_layers_are_summed_as_one_tensor():
    vector, matrices, scalars = torch.zeros(3), [torch.zeros(1, 3)] * 2, [torch.zeros(())] * 8
    stats = [LayerStats(vector, *matrices, *scalars)] * 2
    figures_X = torch.arange(2 * (3 + 3 + 3 + 8), dtype=torch.float32)
    first, second = unflat(sum_over_ranks(figures_X), stats)
    assert first.tokens_per_expert_E.tolist() == [0.0, 1.0, 2.0] and second.tokens == 33.0
