"""A step's metrics, calculated by hand from a made-up result."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from moebius.config import Config, ModelConfig, TrainConfig
from moebius.cost.counts import parameters, training_flops_per_token
from moebius.moe.statistics import LayerStats
from moebius.observe.metrics import LayerMetrics, SourceMetrics
from moebius.train.evaluate import Evaluation
from moebius.train.state import TrainState
from moebius.train.step import StepResult
from moebius.train.step_metrics import step_metrics

B, S = 2, 5
TOKENS = B * S
CONFIG = Config(
    model=ModelConfig(
        vocab_size=61,
        dim=32,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        num_experts=(2, 0, 3),
        moe_min_expansion=2,
        moe_max_expansion=4,
        base_expansion=1.0,
        use_mtp=True,
    ),
    train=TrainConfig(batch_size=B, seq_len=S),
)
DENSE = replace(CONFIG, model=replace(CONFIG.model, num_experts=0, use_mtp=False))


def state_at(step: int) -> TrainState:
    """Return a state without a model."""
    nothing: Any = None
    return TrainState(nothing, [], nothing, [], step=step, tokens=step * TOKENS)


def stats_of(taken: list[float], tokens: float) -> LayerStats:
    """Return the sums of a layer whose experts took everything that chose them.

    The mean entropy is 1/2 and the mean gate is 1/4.
    """
    return LayerStats(
        tokens_per_expert_E=torch.tensor(taken),
        chosen_PE=torch.tensor([taken]),
        probability_PE=torch.zeros(1, len(taken)),
        squared_log_partition=torch.tensor(1.0),
        entropy=torch.tensor(0.5 * tokens),
        gate=torch.tensor(0.25 * sum(taken)),
        unrouted=torch.tensor(0.0),
        dropped=torch.tensor(0.0),
        not_finite=torch.tensor(0.0),
        vanished=torch.tensor(0.0),
        tokens=torch.tensor(float(tokens)),
    )


def result_of(stats: list[LayerStats], **changes: Any) -> StepResult:
    """Return a step's result. The figures of layer i, from 0, are i + 1 times those of layer 0."""
    numbers = torch.arange(1.0, len(stats) + 1)
    values: dict[str, Any] = {
        "loss": torch.tensor(3.5),
        "mtp_loss": torch.tensor(4.5),
        "balance_loss_M": 1.5 * numbers,
        "z_loss_M": 0.3 * numbers,
        "grad_norm": torch.tensor(2.0),
        "router_grad_norm_M": 0.125 * numbers,
        "stats": stats,
        "is_skipped": torch.tensor(False),
        "lr": 0.01,
    }
    return StepResult(**(values | changes))


ROUTED = result_of(
    [
        stats_of([10.0, 0.0], TOKENS),
        stats_of([5.0, 3.0, 2.0], TOKENS),
        stats_of([10.0, 10.0, 10.0], 3 * TOKENS),  # the MTP layer, passed three times
    ]
)


def measured(config: Config, result: StepResult, evaluation: Evaluation | None = None):
    """Return the metrics of step 7 at 100 tokens/s, on a device of 1 MFLOP/s, in 3.5 GB."""
    return step_metrics(config, state_at(7), result, 100.0, 1e6, 3.5e9, evaluation)


def test_the_models_figures():
    metrics = measured(CONFIG, ROUTED)
    assert (metrics.step, metrics.tokens, metrics.lr) == (7, 70, 0.01)
    assert (metrics.loss, metrics.mtp_loss, metrics.grad_norm) == (3.5, 4.5, 2.0)
    assert metrics.balance_loss == pytest.approx(1.5 * (1 + 2 + 3) / 3)
    assert metrics.z_loss == pytest.approx(0.3 * (1 + 2 + 3) / 3)
    assert (metrics.tokens_per_second, metrics.memory_gb) == (100.0, 3.5)
    assert metrics.val_loss is None and metrics.val_bpb is None


def test_of_a_single_layer_with_experts_the_losses_are_its_own():
    model = replace(CONFIG.model, num_experts=(2, 0, 0), use_mtp=False)
    metrics = measured(replace(CONFIG, model=model), result_of([stats_of([10.0, 0.0], TOKENS)]))
    assert (metrics.balance_loss, metrics.z_loss) == (1.5, pytest.approx(0.3))


def test_a_dense_layer_has_its_place_and_the_mtp_layer_is_last():
    first, dense, third, mtp = measured(CONFIG, ROUTED).layers
    assert dense == LayerMetrics()
    assert first.tokens_per_expert == [10, 0] and first.dead_experts == 1
    assert third.tokens_per_expert == [5, 3, 2]
    assert third.cv == pytest.approx(
        math.sqrt(((5 / 3) ** 2 + (1 / 3) ** 2 + (4 / 3) ** 2) / 3) / (10 / 3)
    )
    assert mtp.tokens_per_expert == [10, 10, 10] and mtp.cv == 0.0
    assert [layer.balance_loss for layer in (first, third, mtp)] == [1.5, 3.0, 4.5]
    assert [layer.z_loss for layer in (first, third, mtp)] == pytest.approx([0.3, 0.6, 0.9])
    assert [layer.router_grad_norm for layer in (first, third, mtp)] == [0.125, 0.25, 0.375]
    assert {layer.routing_entropy for layer in (first, third, mtp)} == {0.5}
    assert {layer.mean_gate for layer in (first, third, mtp)} == {0.25}


def test_mfu_counts_the_experts_that_tokens_really_had():
    """Layer 2 routed 3 of its 10 tokens to no expert; the MTP layer only 15 of 30."""
    result = result_of(
        [
            stats_of([10.0, 0.0], TOKENS),
            stats_of([5.0, 0.0, 2.0], TOKENS),
            stats_of([5.0, 5.0, 5.0], 3 * TOKENS),
        ]
    )
    flops = training_flops_per_token(CONFIG.model, S, [1.0, 0.0, 0.7, 1.5])
    assert measured(CONFIG, result).mfu == pytest.approx(100.0 * flops / 1e6)
    # The fuller result has more expert rows, each of 3 passes * 2 FLOPs per weight and token.
    first_width, last_width = CONFIG.model.expert_widths[0], CONFIG.model.expert_widths[-1]
    weights_of_last = 3 * CONFIG.model.dim * last_width
    more = 3 * 2 * weights_of_last * ((1.0 - 0.7) + (3.0 - 1.5))
    difference = measured(CONFIG, ROUTED).mfu - measured(CONFIG, result).mfu
    assert difference == pytest.approx(100.0 * more / 1e6) and first_width != last_width


def test_a_dense_model_has_only_the_models_figures():
    nothing = {
        "mtp_loss": None,
        "balance_loss_M": None,
        "z_loss_M": None,
        "router_grad_norm_M": None,
    }
    metrics = measured(DENSE, result_of([], **nothing))
    assert metrics.layers == [LayerMetrics()] * 3
    assert (metrics.balance_loss, metrics.z_loss, metrics.mtp_loss) == (0, 0, None)
    counts = parameters(DENSE.model)
    weights = counts["attention"] + counts["base_mlp"] + counts["lm_head"]
    attention_core = 2 * S * DENSE.model.dim * DENSE.model.num_layers
    assert metrics.mfu == pytest.approx(100.0 * 3 * (2 * weights + attention_core) / 1e6)


def test_an_evaluation_is_part_of_its_step():
    metrics = measured(CONFIG, ROUTED, Evaluation(loss=3.0, bits_per_byte=1.25, tokens=1000))
    assert (metrics.val_loss, metrics.val_bpb, metrics.val_by_source) == (3.0, 1.25, {})
    by_source = {"a": SourceMetrics(share=0.5, loss=2.0, bpb=None, tokens=10)}
    evaluation = Evaluation(3.0, None, 20, 30, by_source)
    metrics = measured(CONFIG, ROUTED, evaluation)
    assert (metrics.val_bpb, metrics.val_by_source) == (None, by_source)


def test_an_offset_without_a_target_has_no_loss():
    losses = torch.tensor([2.0, math.nan, 4.0])
    metrics = measured(CONFIG, ROUTED._replace(mtp_loss_O=losses))
    assert metrics.mtp_losses == [2.0, None, 4.0]
    assert measured(CONFIG, ROUTED).mtp_losses == []


def test_a_loss_that_is_not_finite_stays_so():
    assert math.isnan(measured(CONFIG, ROUTED._replace(loss=torch.tensor(math.nan))).loss)
