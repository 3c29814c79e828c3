"""A layer's figures, calculated by hand, and the line of JSON that a step is converted to."""

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch

from moebius.moe.statistics import LayerStats
from moebius.observe.metrics import StepMetrics, layer_metrics
from tests.observe.made_up import HEALTHY, dense_metrics, metrics_of

NOT_ALWAYS = {"mtp_loss", "mtp_loss_2", "val_loss", "val_bpb", "val_by_source"}
BY_SOURCE: dict[str, Any] = {
    "a.jsonl": {"share": 0.75, "loss": 2.5, "bpb": 1.0, "tokens": 700},
    "hf:name": {"share": 0.25, "loss": 0.5, "bpb": None, "tokens": 300},
}


def stats_of(taken: list[float], chosen: list[list[float]], **figures: float) -> LayerStats:
    """Return sums over 12 tokens of a layer with three experts, with some figures replaced."""
    values = {
        "squared_log_partition": 1.0,
        "entropy": 6.0,
        "gate": 5.0,
        "unrouted": 0.0,
        "dropped": 0.0,
        "not_finite": 0.0,
        "vanished": 0.0,
        "tokens": 12.0,
    } | figures
    tensors = {name: torch.tensor(value) for name, value in values.items()}
    chosen_PE = torch.tensor(chosen)
    return LayerStats(torch.tensor(taken), chosen_PE, torch.zeros_like(chosen_PE), **tensors)


def test_a_layers_figures_by_hand():
    # In each of two groups, 6 tokens chose. The busy expert took two tokens fewer than chose it.
    sums = stats_of(
        [2.0, 6.0, 2.0],
        [[1.0, 4.0, 1.0], [1.0, 4.0, 1.0]],
        dropped=2.0,
        unrouted=2.0,
        not_finite=3.0,
        vanished=6.0,
    )
    layer = layer_metrics(sums, router_grad_norm=0.25, balance_loss=1.5, z_loss=2.5)
    expected: dict[str, Any] = {
        "tokens_per_expert": [2, 6, 2],
        "cv": pytest.approx(math.sqrt((2 * (4 / 3) ** 2 + (8 / 3) ** 2) / 3) / (10 / 3)),
        "max_violation": pytest.approx(0.8),
        "dead_experts": 0,
        "experts_per_token": pytest.approx(10 / 12),
        "routing_entropy": 0.5,
        "mean_gate": 0.5,
        "dropped_share": pytest.approx(2 / 12),
        "unrouted_share": pytest.approx(2 / 12),
        "vanished_share": 0.5,
        "not_finite_logits": 3,
        "router_grad_norm": 0.25,
        "balance_loss": 1.5,
        "z_loss": 2.5,
    }
    assert asdict(layer) == expected
    assert all(type(count) is int for count in layer.tokens_per_expert)
    assert type(layer.not_finite_logits) is int


def test_shares_are_relative_to_the_assignments_and_tokens_there_were():
    # top-2: 24 assignments of 12 tokens, of which 6 were refused, and 3 tokens had no expert
    sums = stats_of([6.0] * 3, [[8.0, 10.0, 6.0]], dropped=6.0, unrouted=3.0, gate=9.0)
    layer = layer_metrics(sums, None, None, None)
    assert (layer.dropped_share, layer.unrouted_share, layer.mean_gate) == (0.25, 0.25, 0.5)


def test_a_layer_whose_experts_took_nothing():
    layer = layer_metrics(
        stats_of([0.0] * 3, [[0.0] * 3], gate=0.0, unrouted=12.0), None, None, None
    )
    assert layer.mean_gate is None and layer.dropped_share == 0.0 and layer.unrouted_share == 1.0
    assert layer.dead_experts == 3 and layer.cv == 0.0


def test_a_line_is_one_object_with_a_list_for_each_layer_figure():
    assert metrics_of().to_json() == HEALTHY
    assert list(metrics_of().to_json()) == list(HEALTHY)  # in the documented order


@pytest.mark.parametrize(
    "metrics",
    [
        metrics_of(),
        dense_metrics(),
        metrics_of(mtp_loss=1.5),
        metrics_of(val_loss=2.0, val_bpb=0.75),
        metrics_of(mtp_loss=1.5, val_loss=2.0, val_bpb=0.75),
        metrics_of(mtp_loss=1.5, mtp_loss_2=1.0, mtp_loss_3=3.5, mtp_loss_4=None),
        metrics_of(val_loss=2.0, val_bpb=None),
        metrics_of(val_loss=2.0, val_bpb=0.75, val_by_source=BY_SOURCE),
    ],
)
def test_a_line_is_read_back_as_the_same_step(metrics: StepMetrics):
    assert StepMetrics.from_json(json.loads(json.dumps(metrics.to_json()))) == metrics


def test_a_line_of_a_version_with_fewer_figures_is_read():
    line = metrics_of().to_json()
    del line["experts_per_token"], line["vanished_share"]
    first, *_ = StepMetrics.from_json(line).layers
    assert first.experts_per_token is None and first.vanished_share == 0.0
    assert first.tokens_per_expert == [30, 40, 50]


def test_figures_that_were_not_measured_are_not_in_the_line():
    assert NOT_ALWAYS.isdisjoint(metrics_of().to_json())
    line = metrics_of(val_loss=2.0, val_bpb=0.75).to_json()
    assert line["val_loss"] == 2.0 and list(line)[-2:] == ["val_loss", "val_bpb"]


def test_each_offset_and_each_source_has_its_figure():
    line = {"mtp_loss": 1.5, "mtp_loss_2": 1.0, "mtp_loss_3": 3.5, "mtp_loss_4": None}
    metrics = metrics_of(**line, val_loss=2.0, val_bpb=0.75, val_by_source=BY_SOURCE)
    assert metrics.mtp_losses == [1.0, 3.5, None]
    assert metrics.val_by_source["a.jsonl"].loss == 2.5
    assert metrics.val_by_source["hf:name"].bpb is None
    written = metrics.to_json()
    assert {key: written[key] for key in line} == line and written["val_by_source"] == BY_SOURCE


def test_lines_of_earlier_versions_have_no_figures_of_offsets_or_sources():
    metrics = metrics_of(mtp_loss=1.5, val_loss=2.0, val_bpb=0.75)
    assert metrics.mtp_losses == [] and metrics.val_by_source == {}


def test_layers_without_experts_are_not_routed():
    assert [number for number, _ in metrics_of().routed_layers] == [0, 2]
    assert list(dense_metrics().routed_layers) == []
