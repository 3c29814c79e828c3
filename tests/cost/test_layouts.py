"""Layouts: which ones exist, and what one of them sends, stores and costs."""

import pytest

from moebius.config import Config
from moebius.config.files import read_config
from moebius.cost.counts import parameters
from moebius.cost.layouts import BUCKET, FILLED, LATENCY, Layout, layouts, planned
from moebius.hardware.devices import DEVICES

H100 = DEVICES["h100"]
MANY_EXPERTS = ("--model.num_experts=64", "--train.batch_size=1024")
WEIGHTS = "adding up gradients"
TOKENS = "tokens to experts and back"


def standard(*flags: str) -> Config:
    return read_config("standard", list(flags))


def test_layouts_divide_batch_and_experts():
    flags = ("--model.num_experts=6", "--train.batch_size=24", "--train.micro_batch_size=8")
    found = list(layouts(standard(*flags), gpus=4))
    assert {layout.sequences * layout.passes for layout in found} == {6}
    assert {layout.sequences for layout in found} == {1, 2, 3, 6}
    assert {layout.expert_parallel for layout in found} == {1, 2}
    assert {layout.is_sharded for layout in found} == {True, False}
    assert len(found) == len(set(found)) == 3 * 2 * 2 * 4
    of_dense = layouts(read_config("dense", []), gpus=4)
    assert {layout.expert_parallel for layout in of_dense} == {1}


def test_the_activation_checkpointing_that_is_asked_for_is_the_only_one():
    config = standard("--parallel.activation_checkpointing=full")
    assert {layout.recomputing for layout in layouts(config, gpus=1)} == {"full"}
    every_kind = {layout.recomputing for layout in layouts(standard(), gpus=1)}
    assert every_kind == {"none", "selective", "full"}


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (Layout(1, 1, False, "none", 1, 1), "one GPU, 1 sequence"),
        (
            Layout(1, 1, False, "full", 4, 2),
            "one GPU, full recomputation, 8 sequences in 2 passes",
        ),
        (Layout(8, 1, False, "none", 2, 1), "a copy of the weights on each GPU, 2 sequences"),
        (
            Layout(8, 4, True, "selective", 2, 1),
            "weights sharded over all GPUs, experts over 4, selective recomputation, 2 sequences",
        ),
    ],
)
def test_a_layout_in_words(layout, text):
    assert str(layout) == text


def test_one_gpu_sends_nothing():
    alone = planned(standard(), H100, Layout(1, 1, False, "none", 8, 8))
    assert alone.sent == {} and alone.communicating == 0
    assert alone.seconds == sum(alone.computing.values())


def test_an_experts_gradients_are_added_up_over_its_copies():
    """8 devices, each layer's experts spread over 4, have 2 copies of every expert."""
    config = standard(*MANY_EXPERTS)
    sent = planned(config, H100, Layout(8, 4, False, "none", 16, 8)).sent[WEIGHTS]
    counts = parameters(config.model)
    others = sum(counts.values()) - counts["experts"]
    assert sent == pytest.approx(2 * 4 * (7 / 8 * others + 1 / 2 * counts["experts"] / 4))


def test_replicas_send_gradients_and_shards_send_weights_too():
    replicated, sharded = (
        planned(standard(), H100, Layout(8, 1, is_sharded, "none", 8, 1))
        for is_sharded in (False, True)
    )
    weights = replicated.memory.weights
    assert replicated.sent == {WEIGHTS: pytest.approx(2 * 7 / 8 * weights)}
    assert sharded.sent[WEIGHTS] == pytest.approx(7 / 8 * weights)
    # Weights are gathered twice, in bfloat16.
    assert sharded.sent["gathering weights"] == pytest.approx(7 / 8 * weights)
    assert sharded.memory.weights == pytest.approx(weights / 8)
    assert sharded.memory.gathered > 0 == replicated.memory.gathered


def test_gradients_that_take_longer_than_computing_add_their_time():
    """The run uses 16 GPUs in two machines, with a network so slow that little time is hidden."""
    slow = DEVICES["rtx-4090"]
    layout = Layout(16, 1, False, "none", 1, 1)
    result = planned(standard(), slow, layout)
    rate = min(slow.link, 8 * slow.network)
    buckets = -(-result.memory.weights // BUCKET)
    travelling = result.sent[WEIGHTS] / rate + LATENCY * 4 * buckets
    hidden = 0.7 * sum(result.computing.values())
    assert result.communicating == pytest.approx(travelling - hidden) and travelling > hidden


def test_experts_on_other_devices_cost_sending_tokens():
    config = standard(*MANY_EXPERTS)
    together, spread = (
        planned(config, H100, Layout(8, count, False, "none", 8, 1)) for count in (1, 8)
    )
    numbers = 8 * 2048 * 896 * config.model.num_layers
    assert spread.sent[TOKENS] == pytest.approx(4 * 2 * 7 / 8 * numbers)
    collectives = 4 * config.model.num_layers
    waiting = spread.sent[TOKENS] / H100.link + LATENCY * 3 * collectives
    assert spread.communicating == pytest.approx(waiting)
    assert spread.memory.weights < 0.2 * together.memory.weights
    assert spread.sent[WEIGHTS] < together.sent[WEIGHTS]


def test_imbalance_costs_where_experts_are_spread():
    config = standard(*MANY_EXPERTS)
    layout = Layout(8, 8, True, "none", 8, 1)
    even, uneven, worse = (planned(config, H100, layout, factor) for factor in (1.0, 4.0, 16.0))
    assert even.seconds < uneven.seconds < worse.seconds
    assert even.memory.activations < uneven.memory.activations < worse.memory.activations
    # One of 8 experts has 4 times its even load, and the others share the rest.
    rows = (4 + 7 * (64 - 4) / 63) / 8
    assert uneven.sent[TOKENS] == pytest.approx(rows * even.sent[TOKENS])
    together = [
        planned(config, H100, Layout(1, 1, False, "none", 8, 1), factor).seconds
        for factor in (1.0, 16.0)
    ]
    assert together[0] == together[1]


def test_what_fits_leaves_some_memory_to_the_allocator():
    layout = Layout(1, 1, False, "none", 8, 8)
    result = planned(standard(), H100, layout)
    assert result.fits == (result.memory.peak <= FILLED * H100.memory) is True
    assert not planned(standard("--model.num_experts=64"), H100, layout).fits


def test_speed_is_that_of_all_devices_together():
    config = standard()
    one, eight = (planned(config, H100, Layout(gpus, 1, False, "none", 8, 2)) for gpus in (1, 8))
    assert one.tokens_per_second == pytest.approx(16 * 2048 / one.seconds)
    assert eight.tokens_per_second == pytest.approx(8 * 16 * 2048 / eight.seconds)
    assert eight.mfu == pytest.approx(one.mfu * one.seconds / eight.seconds)
    assert 0.3 < one.mfu < 0.5
