"""The effect of alarms' actions on the balance loss and the router, layer by layer."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from moebius.config.observe import Rule
from moebius.model.transformer import routed_layers, seeded
from moebius.moe.balance import Balancing
from moebius.observe.alarms import Alarms
from moebius.observe.metrics import LayerMetrics, StepMetrics
from moebius.train.actions import NUDGE, carry_out, nudge_bias
from moebius.train.state import TrainState, aux_coefficients, model_tensors
from moebius.train.step import train_step
from moebius.train.step_metrics import step_metrics
from tests.observe.made_up import metrics_of
from tests.train.alarms import alarm_of, dead, observing
from tests.train.models import copied
from tests.train.states import TOKENS, E, changed_names, config_of, tokens_of, trained

DENSE_BETWEEN: dict[str, Any] = {
    "num_layers": 4,
    "num_experts": (0, E, 0, E),
    "base_expansion": 1.0,
    "use_mtp": True,
}


def with_cv(step: int, *values: float) -> StepMetrics:
    """Return a step whose layers have these CVs."""
    layers = [LayerMetrics(tokens_per_expert=[50, 50], cv=value) for value in values]
    return replace(metrics_of(step=step), layers=layers)


# raise_aux


def test_each_alarm_doubles_the_layers_balance_loss_up_to_32_times():
    state = trained(config_of(), steps=0)
    done = [carry_out(alarm_of("raise_aux", layer=1), state, []) for _ in range(7)]
    assert done[0] == "balance loss of the layer 0.01 -> 0.02"
    assert done[4] == "balance loss of the layer 0.16 -> 0.32"
    assert done[5] == done[6] == "balance loss of the layer stays at 0.32, its highest"
    assert state.aux_levels == [0, 5]
    assert aux_coefficients(state) == [0.01, pytest.approx(0.32)]


def test_a_balance_loss_of_zero_is_raised_and_relaxed_again():
    state = trained(config_of(aux_loss_coeff=0.0), steps=0)
    assert aux_coefficients(state) == [0.0, 0.0]
    carry_out(alarm_of("raise_aux"), state, [])
    assert aux_coefficients(state) == [pytest.approx(0.01), 0.0]
    carry_out(alarm_of("raise_aux", over=True), state, [])
    assert aux_coefficients(state) == [0.0, 0.0]
    # The alarm of another rule is also over, but there is nothing left to relax.
    carry_out(alarm_of("raise_aux", over=True), state, [])
    assert state.aux_levels == [0, 0]


RAISE_AFTER_3 = Rule(threshold=0.3, patience=3, action="raise_aux")


def test_the_loss_is_relaxed_level_by_level_once_the_figure_is_harmless_again():
    state = trained(config_of(), steps=0)
    state.alarms = Alarms(observing(cv=RAISE_AFTER_3))
    levels = []
    for step in range(1, 40):
        for alarm in state.alarms.look(with_cv(step, 0.1, 0.9 if step <= 12 else 0.1)):
            carry_out(alarm, state, [])
        levels.append(state.aux_levels[1])
    raised = [0] * 2 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    relaxed = [3] * 3 + [2] * 3 + [1] * 3 + [0] * 16
    assert levels == raised + relaxed
    assert state.aux_levels == [0, 0]


def test_several_dead_experts_raise_the_loss_of_their_layer_once():
    """It is relaxed when the last one of them has recovered."""
    state = trained(config_of(), steps=0)
    rule = Rule(threshold=0.01, patience=3, action="raise_aux")
    state.alarms = Alarms(observing(dead_expert=rule))
    levels = []
    for step in range(1, 16):
        counts = [100, 0 if step <= 3 else 100, 0 if step <= 5 else 100, 100]
        layers = [LayerMetrics(tokens_per_expert=counts), LayerMetrics(tokens_per_expert=[99] * 4)]
        for alarm in state.alarms.look(replace(metrics_of(step=step), layers=layers)):
            carry_out(alarm, state, [])
        levels.append(state.aux_levels[0])
    assert levels == [0, 0, *[1] * 5, *[0] * 8]
    assert state.aux_levels == [0, 0]


def test_a_relapse_while_relaxing_raises_the_loss_again():
    state = trained(config_of(), steps=0)
    state.alarms = Alarms(observing(cv=RAISE_AFTER_3))
    levels = []
    for step in range(1, 23):
        is_beyond = step <= 6 or 10 <= step <= 12
        for alarm in state.alarms.look(with_cv(step, 0.9 if is_beyond else 0.1)):
            carry_out(alarm, state, [])
        levels.append(state.aux_levels[0])
    assert levels == [0, 0, 1, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("configured", [0.0, 0.02])
def test_the_raised_loss_is_what_the_step_minimizes(configured):
    config = config_of(aux_loss_coeff=configured)
    state = trained(config)
    for _ in range(3):
        carry_out(alarm_of("raise_aux", layer=1), state, [])
    raised = (configured or 0.005) * 8
    loss = state.model.loss(tokens_of(config), None, Balancing(aux_coefficients(state)))
    assert loss.balance_M is not None
    by_hand = loss.next_token + configured * loss.balance_M[0] + raised * loss.balance_M[1]
    torch.testing.assert_close(loss.total, by_hand)
    routers = [layer.router.weight_ED for layer in routed_layers(state.model)]
    expected = torch.stack([gradient.norm() for gradient in torch.autograd.grad(by_hand, routers)])
    result = train_step(state, tokens_of(config), None, config.train)
    torch.testing.assert_close(result.router_grad_norm_M, expected)


# nudge_bias


def test_the_nudge_by_hand():
    layer = routed_layers(trained(config_of()).model)[0]
    nudge_bias(layer, [16, 32, 0, 16])  # loads of 1, 2, 0 and 1 times the mean
    first = torch.tensor([0.0, -NUDGE, NUDGE, 0.0])
    torch.testing.assert_close(layer.router.bias_E, first)
    nudge_bias(layer, [0, 64, 0, 0])  # 4 times the mean counts as twice
    second = first + NUDGE * torch.tensor([1.0, -1.0, 1.0, 1.0])
    torch.testing.assert_close(layer.router.bias_E, second - second.mean())


@pytest.mark.parametrize(("score", "largest"), [("softmax", 0.4 / 64), ("sigmoid", NUDGE)])
def test_many_experts_with_small_probabilities_are_nudged_less(score, largest):
    """0.1 would outweigh six times the even probability of one of 64 experts."""
    state = trained(config_of(num_experts=64, router_score=score), steps=0)
    layer = routed_layers(state.model)[0]
    nudge_bias(layer, [0, 2] + [1] * 62)
    expected = torch.tensor([largest, -largest] + [0.0] * 62)
    torch.testing.assert_close(layer.router.bias_E, expected)


def test_the_only_expert_is_not_nudged():
    layer = routed_layers(trained(config_of(num_experts=1), steps=0).model)[0]
    nudge_bias(layer, [64])
    assert layer.router.bias_E.tolist() == [0.0]


@pytest.mark.parametrize("counts", [[16, 16, 16, 16], [0, 0, 0, 0]])
def test_an_even_load_is_not_nudged(counts):
    layer = routed_layers(trained(config_of()).model)[0]
    nudge_bias(layer, counts)
    torch.testing.assert_close(layer.router.bias_E, torch.zeros(E))


def test_nudges_move_the_choice_to_idle_experts_and_stay_in_bounds():
    config = config_of()
    state = trained(config)
    router = routed_layers(state.model)[1].router
    with torch.no_grad():
        router.bias_E.copy_(torch.tensor([0.9, -0.3, -0.3, -0.3]))
    tokens_BS = tokens_of(config)[:, :-1]

    def counts() -> tuple[int, ...]:
        counts_E = state.model(tokens_BS).stats[1].tokens_per_expert_E
        return tuple(round(count) for count in counts_E.tolist())

    assert counts() == (TOKENS, 0, 0, 0)
    # The busy expert loses 0.1 and the others gain 0.05, so each nudge moves them 0.15 closer.
    for _ in range(6):
        carry_out(alarm_of("nudge_bias", layer=1, counts=counts()), state, [])
    torch.testing.assert_close(router.bias_E, torch.zeros(E), atol=1e-6, rtol=0)
    assert min(counts()) > 0
    # Counts that never change push the biases until they outweigh every probability.
    for _ in range(40):
        carry_out(alarm_of("nudge_bias", layer=1, counts=(0, 0, 0, TOKENS)), state, [])
    assert router.bias_E.abs().max() <= 1 and router.bias_E[3] == -1
    assert counts()[3] == 0
    assert not routed_layers(state.model)[0].router.bias_E.any()


# which layer


def test_layers_without_experts_and_the_mtp_layer_are_told_apart():
    config = config_of(**DENSE_BETWEEN)
    state = TrainState.new(seeded(0, config.model), config)
    assert state.aux_levels == [0, 0, 0]
    # The MTP layer's figures come last.
    names = {1: "layers.1.moe", 3: "layers.3.moe", 4: "mtp.moe"}
    for index, (layer, name) in enumerate(names.items()):
        before = copied(model_tensors(state.model))
        carry_out(alarm_of("nudge_bias", layer=layer), state, [])
        assert changed_names(before, state.model) == [f"{name}.router.bias_E"]
        carry_out(dead(3, 30, 20, 10, 0, layer=layer), state, [])
        changed = changed_names(before, state.model)
        assert len(changed) > 1 and all(key.startswith(f"{name}.") for key in changed)
        carry_out(alarm_of("raise_aux", layer=layer), state, [])
        assert state.aux_levels == [1] * (index + 1) + [0] * (2 - index)


def test_the_metrics_number_the_layers_as_alarms_do():
    config = config_of(**DENSE_BETWEEN)
    state = TrainState.new(seeded(0, config.model), config)
    router = routed_layers(state.model)[2].router
    assert state.model.mtp is not None and state.model.mtp.moe.router is router
    with torch.no_grad():
        router.bias_E[2] = -10
    result = train_step(state, tokens_of(config), None, config.train)
    metrics = step_metrics(config, state, result, 1.0, 1.0, 1.0)
    assert [len(layer.tokens_per_expert) for layer in metrics.layers] == [0, E, 0, E, E]
    assert metrics.layers[0] == metrics.layers[2] == LayerMetrics()
    rule = Rule(threshold=0.001, patience=0, action="revive")
    alarms = Alarms(observing(dead_expert=rule)).look(metrics)
    (alarm,) = [alarm for alarm in alarms if alarm.layer == 4]
    assert alarm.experts == (2,)
    carry_out(alarm, state, [])
    assert router.bias_E[2] == 0


def test_a_dense_last_layer_leaves_mtp_without_experts():
    config = config_of(num_layers=3, num_experts=(0, E, 0), base_expansion=1.0, use_mtp=True)
    state = TrainState.new(seeded(0, config.model), config)
    result = train_step(state, tokens_of(config), None, config.train)
    metrics = step_metrics(config, state, result, 1.0, 1.0, 1.0)
    assert [len(layer.tokens_per_expert) for layer in metrics.layers] == [0, E, 0, 0]
    carry_out(alarm_of("raise_aux", layer=1), state, [])
    assert state.aux_levels == [1]
