"""One optimizer step by hand: its sums, norms and biases, and balancing over a whole batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import Config, ModelConfig, TrainConfig
from moebius.model.loss import total_loss
from moebius.model.transformer import Transformer, routed_layers, seeded
from moebius.moe.balance import Balancing
from moebius.moe.statistics import LayerStats
from moebius.train import step
from moebius.train.common_start import tie_experts
from moebius.train.state import TrainState
from moebius.train.step import CountsSoFar, StepResult, over_the_batch, train_step

B, S, V, E = 4, 16, 61, 3
VARIANTS = {
    "top-1": {},
    "top-2": {"router_top_k": 2},
    "sigmoid with MTP": {"router_type": "sigmoid", "use_mtp": True},
}


def config_of(
    micro_batches: int = 1, train: dict[str, Any] | None = None, **changes: Any
) -> Config:
    """Return a configuration with two routed layers and a batch in equal micro-batches."""
    shape: dict[str, Any] = {
        "vocab_size": V,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "num_experts": E,
        "moe_min_expansion": 2,
        "moe_max_expansion": 2,
        "base_expansion": 1.0,
    }
    settings: dict[str, Any] = {
        "steps": 10,
        "batch_size": B,
        "seq_len": S,
        "micro_batch_size": B // micro_batches,
        "warmup_steps": 0,
    }
    model = ModelConfig(**(shape | changes))
    return Config(model=model, train=TrainConfig(**(settings | (train or {}))))


def tokens_of(config: Config) -> Tensor:
    """Return a batch of random tokens, which is the same every time."""
    length = S + (4 if config.model.use_mtp else 1)
    return torch.randint(V, (B, length), generator=torch.Generator().manual_seed(1))


def new_state(config: Config) -> TrainState:
    return TrainState.new(seeded(0, config.model), config)


def stepped(config: Config) -> tuple[TrainState, StepResult]:
    """Return a state after its first step, and what the step measured."""
    state = new_state(config)
    return state, train_step(state, tokens_of(config), None, config.train)


def assert_same_sums(stats: list[LayerStats], expected: list[LayerStats]) -> None:
    for layer, expected_layer in zip(stats, expected, strict=True):
        for name, value, expected_value in zip(
            LayerStats._fields, layer, expected_layer, strict=True
        ):
            torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "global_batch"])
def test_micro_batches_add_up_to_the_batch(variant, scope):
    whole, *parts = (
        stepped(config_of(count, aux_loss_scope=scope, **VARIANTS[variant]))[1]
        for count in (1, 2, 4)
    )
    for stats, passes in zip(whole.stats, (1, 1, 3), strict=False):
        # Tokens pass through the MTP layer three times. No token is counted twice.
        assert stats.tokens == passes * B * S
        assert stats.chosen_PE.shape == stats.probability_PE.shape == (1, E)
        if variant != "sigmoid with MTP":
            num_chosen = (2 if variant == "top-2" else 1) * B * S
            assert stats.tokens_per_expert_E.sum() == stats.chosen_PE.sum() == num_chosen
    for part in parts:
        assert_same_sums(part.stats, whole.stats)
        for name in ("loss", "mtp_loss", "z_loss_M"):
            torch.testing.assert_close(getattr(part, name), getattr(whole, name), msg=name)
    assert not whole.loss.requires_grad
    assert not any(value.requires_grad for stats in whole.stats for value in stats)


def test_experts_that_start_equal_diverge_after_the_given_part_of_the_run():
    config = config_of(router_top_k=1, train={"steps": 6, "common_start": 0.5})
    state = new_state(config)
    tie_experts(state.model)
    tokens_BL = tokens_of(config)
    are_equal = []
    for _ in range(6):
        train_step(state, tokens_BL, None, config.train)
        weights = [w for name, w in state.model.named_parameters() if name.endswith("w_up_EDF")]
        assert weights
        are_equal.append(all(torch.equal(w, w[:1].expand_as(w)) for w in weights))
    assert are_equal == [True] * 3 + [False] * 3


def test_the_states_numbers_move_one_step_on():
    state, result = stepped(config_of(2, train={"lr": 0.5}))
    assert (state.step, state.tokens, result.lr) == (1, B * S, 0.5)
    assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_router_gradient_norms_are_those_before_clipping(micro_batches):
    config = config_of(micro_batches, train={"grad_clip": 1e-3}, use_mtp=True)
    state = new_state(config)
    routers = [layer.router.weight_ED for layer in routed_layers(state.model)]
    parameters = list(state.model.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for micro_BL in tokens_of(config).chunk(micro_batches):
        loss = state.model.loss(micro_BL).total / micro_batches
        gradients = torch.autograd.grad(loss, parameters)
        sums = [total + part for total, part in zip(sums, gradients, strict=True)]
    gradient_of = dict(zip(parameters, sums, strict=True))
    result = train_step(state, tokens_of(config), None, config.train)
    assert result.router_grad_norm_M is not None and len(result.router_grad_norm_M) == 3
    router_norms = torch.stack([gradient_of[router].norm() for router in routers])
    torch.testing.assert_close(result.router_grad_norm_M, router_norms)
    norm = torch.stack([gradient.norm() for gradient in sums]).norm()
    torch.testing.assert_close(result.grad_norm, norm)
    assert norm > config.train.grad_clip


def test_a_dense_model_has_no_router_figures():
    state, result = stepped(config_of(num_experts=0))
    assert result.stats == state.aux_levels == []
    assert result.router_grad_norm_M is result.balance_loss_M is result.z_loss_M is None


# the loss-free bias


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bias_moves_once_a_step_by_the_whole_batchs_counts(micro_batches, variant):
    state, result = stepped(config_of(micro_batches, router_bias_rate=0.01, **VARIANTS[variant]))
    for layer, stats in zip(routed_layers(state.model), result.stats, strict=True):
        count_E = stats.chosen_PE[0]
        by_hand = 0.01 * (count_E.mean() - count_E).sign()
        torch.testing.assert_close(layer.router.bias_E, by_hand - by_hand.mean())
        assert layer.router.bias_E.any()


def test_the_bias_is_shifted_by_choices_that_full_experts_refused():
    config = config_of(router_type="switch", capacity_factor=0.1, router_bias_rate=0.01)
    state = new_state(config)
    router = routed_layers(state.model)[0].router
    with torch.no_grad():
        router.bias_E[0] = 1.0
    result = train_step(state, tokens_of(config), None, config.train)
    assert result.stats[0].tokens_per_expert_E.tolist() == [3.0, 0.0, 0.0]
    assert result.stats[0].chosen_PE[0, 0] == B * S
    before = torch.tensor([1.0, 0.0, 0.0]) + torch.tensor([-0.01, 0.01, 0.01])
    torch.testing.assert_close(router.bias_E, before - before.mean())


def test_without_a_rate_no_bias_moves():
    state, _ = stepped(config_of())
    assert not any(layer.router.bias_E.any() for layer in routed_layers(state.model))


# balance over the whole batch


def test_counts_so_far():
    counts = CountsSoFar()
    assert counts(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert counts(torch.tensor([3.0, 0.0])).tolist() == [4.0, 2.0]
    assert counts(torch.tensor([0.0, 5.0])).tolist() == [4.0, 7.0]


def test_each_micro_batch_is_balanced_over_those_up_to_it(monkeypatch):
    seen: list[Tensor] = []

    class NotedCounts(CountsSoFar):
        """Counts that are recorded whenever a micro-batch is balanced over them."""

        def __call__(self, counts_X: Tensor) -> Tensor:
            seen.append(super().__call__(counts_X))
            return seen[-1]

    monkeypatch.setattr(step, "CountsSoFar", NotedCounts)
    config = config_of(4, aux_loss_scope="global_batch", aux_loss_coeff=0.1)
    state, untrained = new_state(config), seeded(0, config.model)
    result = train_step(state, tokens_of(config), None, config.train)
    assert [counts[E] for counts in seen] == [S, 2 * S, 3 * S, 4 * S]
    counts = [torch.cat([stats.chosen_PE[0], stats.tokens[None]]) for stats in result.stats]
    assert torch.equal(seen[-1], torch.cat(counts))
    # Compute each micro-batch's loss from its own probabilities and the load so far.
    losses = []
    for counts_X, micro_BL in zip(seen, tokens_of(config).chunk(4), strict=True):
        stats = untrained.loss(micro_BL).stats
        for layer_counts_X, layer in zip(counts_X.chunk(2), stats, strict=True):
            load_E = layer_counts_X[:E] / layer_counts_X[E]
            losses.append(E * load_E @ layer.probability_PE.sum(dim=0) / S)
    expected = torch.stack(losses).view(4, 2).mean(dim=0).detach()
    torch.testing.assert_close(result.balance_loss_M, expected)


def balance_gradient(model: Transformer, tokens_BL: Tensor, balancing: Balancing) -> Tensor:
    """Return the first router's gradient of the first layer's balance loss.

    The second layer's loss is left out, because it depends on what the first layer does.
    """
    stats = model.loss(tokens_BL).stats[:1]
    loss = total_loss(torch.zeros(()), None, stats, model.config, balancing)
    return torch.autograd.grad(loss.total, routed_layers(model)[0].router.weight_ED)[0]


def test_a_last_micro_batch_is_balanced_as_its_part_of_one_large_batch():
    config = config_of(aux_loss_scope="global_batch")
    model, tokens_BL = seeded(0, config.model), tokens_of(config)
    first_BL, last_BL = tokens_BL[:3], tokens_BL[3:]
    whole = balance_gradient(model, tokens_BL, Balancing([1.0], CountsSoFar()))
    counts = CountsSoFar()
    first_alone = balance_gradient(model, first_BL, Balancing([1.0], counts))
    last = balance_gradient(model, last_BL, Balancing([1.0], counts))
    # This would be the first part's gradient if the load of the whole batch were already known.
    stats = model.loss(tokens_BL).stats[0]
    counts_X = torch.cat([stats.chosen_PE.sum(dim=0), stats.tokens[None]])
    first = balance_gradient(model, first_BL, Balancing([1.0], lambda _: counts_X))
    torch.testing.assert_close((3 * first + last) / 4, whole, rtol=1e-4, atol=1e-8)
    assert not torch.allclose(first_alone, first, rtol=1e-2)


def test_the_scope_is_the_configured_one():
    losses = {}
    for scope in ("sequence", "micro_batch", "global_batch"):
        for count in (1, 4):
            _, result = stepped(config_of(count, aux_loss_scope=scope))
            assert result.balance_loss_M is not None
            losses[scope, count] = result.balance_loss_M
    torch.testing.assert_close(losses["sequence", 1], losses["sequence", 4])
    torch.testing.assert_close(losses["micro_batch", 1], losses["global_batch", 1])
    # A micro-batch is one sequence.
    torch.testing.assert_close(losses["micro_batch", 4], losses["sequence", 4])
    # The fewer tokens are balanced separately, the further their load is from even.
    assert (losses["sequence", 1] > losses["global_batch", 4]).all()
    assert (losses["global_batch", 4] > losses["global_batch", 1]).all()


def test_a_model_without_experts_has_no_statistics():
    config = config_of(num_experts=0)
    part = seeded(0, config.model).loss(tokens_of(config))
    assert over_the_batch([part, part]) == []


@pytest.mark.parametrize("levels", [[0, 3], [2, 0]])
def test_levels_of_the_balance_loss_are_used_in_every_micro_batch(levels):
    config = config_of(2, aux_loss_coeff=0.02)
    raised = new_state(config)
    raised.aux_levels = levels
    unbalanced = seeded(0, replace(config.model, aux_loss_coeff=0.0))
    routers = [layer.router.weight_ED for layer in routed_layers(unbalanced)]
    expected = [torch.zeros_like(router) for router in routers]
    for micro_BL in tokens_of(config).chunk(2):
        loss = unbalanced.loss(micro_BL)
        assert loss.balance_M is not None
        scaled = loss.total + sum(
            0.02 * 2**level * balance
            for level, balance in zip(levels, loss.balance_M, strict=True)
        )
        gradients = torch.autograd.grad(scaled, routers)
        expected = [total + part / 2 for total, part in zip(expected, gradients, strict=True)]
    result = train_step(raised, tokens_of(config), None, config.train)
    norms = torch.stack([gradient.norm() for gradient in expected])
    torch.testing.assert_close(result.router_grad_norm_M, norms)
