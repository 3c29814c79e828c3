"""The least work of each component, counted by hand."""

import pytest

from moebius.config import Config, TrainConfig
from moebius.cost.counts import parameters
from moebius.cost.floor import Component, Work, components, optimizer_bytes
from tests.cost.test_counts import ATTENTION, EXPERTS, FLOPS, WIDTHS, D, E, G, H, N, S, V, small

BATCH = 6
TOKENS = BATCH * S
ITEM = 2  # bfloat16


def config_of(passes: int = 1, **changes: object) -> Config:
    train = TrainConfig(batch_size=BATCH, micro_batch_size=BATCH // passes, seq_len=S)
    return Config(model=small(**changes), train=train)


def test_the_floor_is_the_longer_of_computing_and_moving():
    assert Work(flops=6e12, bytes=1e9).seconds(3e12, 1e9) == 2.0
    assert Work(flops=6e12, bytes=5e9).seconds(3e12, 1e9) == 5.0
    assert Work(1.0, 2.0) + Work(10.0, 20.0) == Work(11.0, 22.0)


def test_matrix_products_by_hand():
    found = components(config_of(), ITEM)
    weights, rows = 2 * ATTENTION, 2 * TOKENS
    numbers = rows * (2 * D + (N + 2 * G) * H + N * H)
    flops = FLOPS["attention_projections"] * TOKENS
    assert found["attention_projections"] == Component(
        weights,
        Work(flops, (4 + 2 * ITEM) * weights + ITEM * numbers),
        Work(2 * flops, (ITEM + 2 * 4) * weights + 2 * ITEM * numbers),
    )
    weights, numbers = E * sum(EXPERTS), 3 * TOKENS * sum(WIDTHS) + 2 * 2 * TOKENS * D
    flops = FLOPS["experts"] * TOKENS
    assert found["expert_gemms"] == Component(
        weights,
        Work(flops, (4 + 2 * ITEM) * weights + ITEM * numbers),
        Work(2 * flops, (ITEM + 2 * 4) * weights + 2 * ITEM * numbers),
    )


def test_the_base_mlp_by_hand():
    """Input and output, two inputs of the activation, its result and what it is computed from."""
    config = config_of(base_expansion=2.0)
    found, width = components(config, ITEM)["base_mlp"], config.model.base_width
    weights, numbers = 2 * 3 * D * width, 2 * TOKENS * (2 * D + 4 * width)
    flops = 2 * weights * TOKENS
    assert found == Component(
        weights,
        Work(flops, (4 + 2 * ITEM) * weights + ITEM * numbers),
        Work(2 * flops, (ITEM + 2 * 4) * weights + 2 * ITEM * numbers),
    )


def test_weights_in_the_products_format_are_not_cast():
    found = components(config_of(), item=4)["lm_head"]
    assert found.forward == Work(2 * V * D * TOKENS, 4 * V * D + 4 * TOKENS * D)


def test_components_that_only_move_bytes_by_hand():
    found = components(config_of(), ITEM)
    embedding = Work(bytes=2 * 4 * TOKENS * D), Work(bytes=4 * (TOKENS + 2 * V) * D)
    assert found["embedding"] == Component(V * D, *embedding)
    # Both norms of a layer read and write the stream in float32; what they add and what they give
    # to the products is in the products' format. Backward reads one more stream of gradients.
    numbers = 2 * 2 * TOKENS * D
    norms = Work(bytes=numbers * (2 * 4 + 2 * ITEM)), Work(bytes=numbers * (3 * 4 + 2 * ITEM))
    assert found["norms"] == Component(parameters(small())["norms"], *norms)
    rotated = Work(bytes=2 * ITEM * 2 * TOKENS * (N + G) * H)
    assert found["rotary"] == Component(0, rotated, rotated)
    hidden = TOKENS * sum(WIDTHS)
    activation = Work(bytes=ITEM * 3 * hidden), Work(bytes=ITEM * 5 * hidden)
    assert found["activation"] == Component(0, *activation)
    results = 2 * TOKENS
    combine = Work(bytes=ITEM * 2 * results * D), Work(bytes=ITEM * 3 * results * D)
    assert found["combine"] == Component(0, *combine)


def test_twice_the_passes_read_the_weights_twice():
    one, two = (components(config_of(passes), ITEM)["expert_gemms"] for passes in (1, 2))
    assert two.forward.flops == one.forward.flops
    weights = E * sum(EXPERTS)
    assert two.forward.bytes - one.forward.bytes == (4 + 2 * ITEM) * weights
    assert two.backward.bytes - one.backward.bytes == (ITEM + 2 * 4) * weights


def test_a_measured_number_of_experts_counts():
    config = config_of(base_expansion=2.0, router_type="sigmoid", use_mtp=True)
    most, measured = components(config, ITEM), components(config, ITEM, [1.5, 0.0, 2.0])
    assert most["dispatch"].forward.bytes == 2 * ITEM * 2 * E * TOKENS * D
    assert measured["dispatch"].forward.bytes == 2 * ITEM * 1.5 * TOKENS * D
    assert measured["expert_gemms"].forward.flops == 2 * 1.5 * EXPERTS[0] * TOKENS
    assert measured["mtp"].forward.flops < most["mtp"].forward.flops


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizer": "adamw"}, 4 * (3 + 1 + 2 + 2 * 2)),
        ({"optimizer": "muon"}, 4 * (3 + 1 + 2 + 2 * 1)),
        ({"grad_clip": 0.0}, 4 * (1 + 1 + 2 + 2 * 2)),
    ],
    ids=str,
)
def test_the_optimizers_bytes(changes, expected):
    """The accesses are clipping, the gradient, the weight and the moments, of 4 bytes each."""
    config = Config(model=small(), train=TrainConfig(**changes))
    assert optimizer_bytes(config) == expected
    optimizer = components(config, ITEM)["optimizer"]
    assert optimizer.forward.bytes == expected * sum(parameters(config.model).values())


def test_what_a_model_does_not_have_is_no_component():
    of_experts = {"router", "dispatch", "expert_gemms", "activation"}
    assert not of_experts & set(components(config_of(num_experts=0, base_expansion=2.0), ITEM))
    assert of_experts < set(components(config_of(), ITEM))


def test_every_parameter_belongs_to_a_component():
    changes = {"base_expansion": 2.0, "use_mtp": True, "qk_norm": True}
    config = config_of(**changes)
    found = sum(component.parameters for component in components(config, ITEM).values())
    assert found == sum(parameters(config.model).values())
