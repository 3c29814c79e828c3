"""Seconds of a block's components, calculated by hand for a made-up device."""

from dataclasses import replace

import pytest

from moebius.config import Config, DataConfig, TrainConfig
from moebius.cost.device import Device
from moebius.cost.layer_time import (
    ATTENTION_SECONDS,
    FUSED_FORWARD,
    FUSED_START,
    GROUPED_FACTOR,
    GROUPED_START,
    H100_FLOPS,
    Passes,
    block_seconds,
    mlp_seconds,
    product_seconds,
)
from moebius.cost.memory import Share
from moebius.hardware.devices import DEVICES
from tests.cost.test_counts import EXPERTS, WIDTHS, D, small

GPU = Device("a GPU", 1e12, 1e11, 80e9, 4e11, 4e10, "made up")
TOKENS = 3 * 2048


def config_of(**changes: object) -> Config:
    return Config(
        model=small(**changes),
        data=DataConfig(document_masking=False),
        train=TrainConfig(batch_size=3, seq_len=2048),
    )


def test_the_constants_were_measured_on_the_h100_of_the_table():
    assert DEVICES["h100"].flops == H100_FLOPS


def test_a_product_takes_its_flops_or_its_bytes_whichever_are_longer():
    cast = 6 * 4096 * 8192 / 1e11
    large = 2 * 512 * 4096 * 8192 / 1e12
    assert product_seconds(GPU, 512, [(4096, 8192)]) == pytest.approx(
        (large + cast, 2 * large + cast)
    )
    small_one = 2 * (2 * (4096 + 8192) + 4096 * 8192) / (0.85 * 1e11)
    assert product_seconds(GPU, 2, [(4096, 8192)]) == pytest.approx(
        (small_one + cast, 2 * small_one + cast)
    )


def test_grouped_experts_by_hand():
    seconds = mlp_seconds(config_of(router_top_k=2), GPU, Share(3), 1)
    rows = 2 * TOKENS
    product = GROUPED_START + GROUPED_FACTOR * 2 * rows * D * WIDTHS[1] / 1e12
    cast = 6 * 3 * EXPERTS[1] / 1e11
    assert seconds["expert_gemms"] == pytest.approx((3 * product + cast, 6 * product + cast))
    numbers = 2 * rows * WIDTHS[1] / 1e11
    assert seconds["activation"] == pytest.approx((3 * numbers, 5 * numbers))
    assert set(seconds) == {"router", "dispatch", "expert_gemms", "activation", "combine"}


def test_fused_experts_by_hand():
    hopper = replace(GPU, is_hopper=True)
    seconds = mlp_seconds(config_of(), hopper, Share(3), 1)
    product = FUSED_FORWARD * 2 * 3 * TOKENS * D * WIDTHS[1] / 1e12
    cast = 6 * 3 * EXPERTS[1] / 1e11
    assert seconds["expert_gemms"].forward == pytest.approx(2 * FUSED_START + product + cast)
    assert set(seconds) == {"router", "dispatch", "expert_gemms"}


@pytest.mark.parametrize("imbalance", [1.0, 1.5])
def test_fused_kernels_bring_the_results_of_one_expert_per_token_back_themselves(imbalance):
    hopper, share = replace(GPU, is_hopper=True), Share(3, imbalance=imbalance)
    one, two = (mlp_seconds(config_of(router_top_k=k), hopper, share, 0) for k in (1, 2))
    assert "combine" not in one and two["combine"].forward > 0


def test_a_dense_layer_has_a_base_mlp_alone():
    config = config_of(num_experts=(0, 3), base_expansion=2.0)
    assert set(mlp_seconds(config, GPU, Share(3), 0)) == {"base_mlp"}
    assert {"base_mlp", "router"} < set(mlp_seconds(config, GPU, Share(3), 1))


def attention_seconds(head_dim: int, document_masking: bool = False) -> Passes:
    """Return attention's seconds on an H100 for the numbers with which it was measured."""
    heads = {32: 28, 64: 14, 112: 8, 128: 7, 256: 7}.get(head_dim, 7)
    config = Config(
        model=small(num_heads=heads, num_kv_heads=heads, head_dim=head_dim),
        data=DataConfig(document_masking=document_masking),
        train=TrainConfig(batch_size=16, seq_len=2048),
    )
    return block_seconds(config, DEVICES["h100"], Share(16), 0)["attention_core"]


@pytest.mark.parametrize("head_dim", ATTENTION_SECONDS)
def test_attention_takes_what_was_measured(head_dim):
    assert sum(attention_seconds(head_dim)) == pytest.approx(ATTENTION_SECONDS[head_dim])


def test_attention_between_and_beyond_the_measured_head_widths():
    wider = sum(attention_seconds(256)) / 2  # twice the numbers
    assert wider == pytest.approx(ATTENTION_SECONDS[128])
    between = sum(attention_seconds(48)) * 896 / (7 * 48)
    assert ATTENTION_SECONDS[64] < between < ATTENTION_SECONDS[32]


def test_attention_skips_other_documents():
    assert sum(attention_seconds(64, document_masking=True)) < 0.85 * sum(attention_seconds(64))


def test_a_block_has_all_components():
    names = set(block_seconds(config_of(), GPU, Share(3), 0))
    attention = {"norms", "attention_projections", "rotary", "attention_core"}
    assert names == attention | {"router", "dispatch", "expert_gemms", "activation", "combine"}
