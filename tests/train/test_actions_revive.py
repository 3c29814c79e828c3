"""Expert revival: a dead expert becomes a noisy copy of a live one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.model.transformer import Transformer, routed_layers
from moebius.observe.alarm import Alarm
from moebius.train.actions import NOISE, answer, carry_out, revive
from moebius.train.optimizer_state import named_state
from moebius.train.state import TrainState, model_tensors
from moebius.train.step import train_step
from tests.train.alarms import alarm_of, dead
from tests.train.models import copied
from tests.train.states import changed_names, config_of, tokens_of, trained


def answers_to(alarms: list[Alarm], state: TrainState) -> list[str]:
    """Answer the alarms, and return the recorded action for each of them."""
    done: list[str] = []
    events = {"events": lambda self, answered: done.extend(event.done for event in answered)}
    log: Any = type("Log", (), events)()
    nothing: Any = None
    answer(alarms, state, nothing, log, max_rollbacks=0)
    return done


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_revived_expert_is_a_copy_with_noise_and_nothing_else_changes(optimizer):
    state = trained(config_of(optimizer))
    layer = routed_layers(state.model)[1]
    with torch.no_grad():
        layer.router.bias_E.copy_(torch.tensor([0.1, -0.2, 0.3, -0.2]))
    before = copied(model_tensors(state.model))
    moments_before = copied(named_state(state.optimizers, state.model))
    random = torch.get_rng_state()
    done = carry_out(dead(3, 20, 4, 40, 0, layer=1), state, [])
    assert done == "expert 3 is now a copy of expert 2, with noise"
    assert torch.equal(torch.get_rng_state(), random)

    bias = "layers.1.moe.router.bias_E"
    weights = [
        f"layers.1.moe.{name}"
        for name in (
            "router.weight_ED",
            "experts.w_gate_EDF",
            "experts.w_up_EDF",
            "experts.w_down_EFD",
        )
    ]
    assert sorted(changed_names(before, state.model)) == sorted([*weights, bias])
    after = model_tensors(state.model)
    assert all(torch.equal(after[name][:3], before[name][:3]) for name in (*weights, bias))
    assert after[bias][3] == after[bias][2] == before[bias][2]
    for name in weights:
        source = before[name][2]
        noise = (after[name][3] - source) / source.std()
        assert noise.std() == pytest.approx(NOISE, rel=0.1 if source.ndim == 2 else 0.5), name
        assert abs(noise.mean()) < 0.5 * NOISE, name

    moments = named_state(state.optimizers, state.model)
    assert moments.keys() == moments_before.keys()
    per_expert = {
        name for name in moments if name.rpartition("/")[0] in weights and moments[name].ndim
    }
    adamw = {"exp_avg", "exp_avg_sq"}
    assert {name.rpartition("/")[2] for name in per_expert} == (
        adamw | {"momentum"} if optimizer == "muon" else adamw
    )
    for name, value in moments.items():
        value_before = moments_before[name]
        if name in per_expert:
            assert value_before[2].any() and torch.equal(value[3], value_before[2]), name
            value, value_before = value[:3], value_before[:3]
        assert torch.equal(value, value_before), name


def test_the_same_alarm_revives_the_same_expert():
    weights = []
    for seed, step in ((0, 10), (1, 10), (2, 11)):
        state = trained(config_of())
        torch.manual_seed(seed)  # the state of the run's own generator must not matter
        carry_out(replace(dead(3, 20, 4, 40, 0), step=step), state, [])
        weights.append(routed_layers(state.model)[0].experts.w_up_EDF[3])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_an_expert_can_be_revived_before_the_first_step_of_the_optimizer():
    config = config_of()
    state = trained(config, steps=0)
    layer = routed_layers(state.model)[0]
    revive(layer, 0, 1, state.optimizers, seed=0)
    weak_D, busy_D = layer.router.weight_ED[:2]
    assert torch.nn.functional.cosine_similarity(weak_D, busy_D, dim=0) > 0.95
    train_step(state, tokens_of(config), None, config.train)


def nearest_to(expert: int, model: Transformer, before_EDF: Tensor) -> int:
    """Return the expert whose earlier weights are the closest to this expert's weights now."""
    now_DF = routed_layers(model)[0].experts.w_up_EDF[expert]
    return int((before_EDF - now_DF).flatten(1).norm(dim=1).argmin())


def up_weights(state: TrainState) -> Tensor:
    """Return a copy of the first layer's up weights."""
    return routed_layers(state.model)[0].experts.w_up_EDF.detach().clone()


@pytest.mark.parametrize(
    ("counts", "sources"),
    [
        ((40, 24, 0, 0), {2: 0, 3: 1}),
        ((0, 24, 40, 0), {0: 2, 3: 1}),
        ((16, 0, 0, 48, 0, 0, 20, 24), {1: 3, 2: 7, 4: 6, 5: 0}),
    ],
)
def test_several_dead_experts_are_copied_from_different_ones(counts, sources):
    state = trained(config_of(num_experts=len(counts)))
    before = up_weights(state)
    assert answers_to([dead(expert, *counts) for expert in sources], state) == [
        f"expert {weak} is now a copy of expert {busy}, with noise"
        for weak, busy in sources.items()
    ]
    assert {weak: nearest_to(weak, state.model, before) for weak in sources} == sources


def test_an_expert_that_the_rule_calls_dead_is_not_copied_either():
    """With a threshold of 5%, experts with up to 1.6% of the tokens must not be copied."""
    counts = (960, 10, 14, 16)
    state = trained(config_of())
    before = up_weights(state)
    alarms = [replace(dead(expert, *counts), threshold=0.05) for expert in (1, 2, 3)]
    answers_to(alarms, state)
    assert [nearest_to(expert, state.model, before) for expert in (1, 2, 3)] == [0, 0, 0]


def test_layers_do_not_share_their_count_of_revived_experts():
    state = trained(config_of())
    alarms = [dead(3, 40, 24, 10, 0, layer=layer) for layer in (0, 1)]
    assert answers_to(alarms, state) == ["expert 3 is now a copy of expert 0, with noise"] * 2


@pytest.mark.parametrize(
    "counts",
    [(990, 2, 3, 5), (5, 3, 990, 2), (0, 100, 0), (100, 0, 0, 0), (50, 1, 48, 1, 0, 0, 0, 0)],
)
def test_every_dead_expert_is_a_copy_of_a_live_one_and_no_two_are_twins(counts):
    state = trained(config_of(num_experts=len(counts)))
    before = up_weights(state)
    all_dead = [expert for expert, count in enumerate(counts) if count < 0.01 * sum(counts)]
    done = answers_to([dead(expert, *counts) for expert in all_dead], state)
    assert all("copy" in line and "no busier" not in line for line in done), done
    sources = {nearest_to(expert, state.model, before) for expert in all_dead}
    assert sources.isdisjoint(all_dead)
    after = up_weights(state)
    for index, expert in enumerate(all_dead):
        assert not any(torch.equal(after[expert], after[twin]) for twin in all_dead[:index])


def test_an_alarm_about_a_layer_revives_its_weakest_expert_from_its_busiest():
    state = trained(config_of())
    uneven = alarm_of("revive", counts=(40, 4, 72, 1))
    assert carry_out(uneven, state, []) == "expert 3 is now a copy of expert 2, with noise"
    dominant = alarm_of("revive", counts=(8, 100, 16, 0), rule="dominant_expert", experts=(1,))
    assert carry_out(dominant, state, []) == "expert 3 is now a copy of expert 1, with noise"


HEALTHY = {
    "one expert": (64,),
    "two uneven experts": (98, 2),
    "128 even experts": (30,) * 128,
    # 0.2 of the even share, which is 0.16% of the load
    "128 experts, one with little": (*(50,) * 127, 10),
    # One step has too few tokens to tell: 9 of 512 healthy experts have none by chance.
    "512 experts, some without a token": (*(4,) * 503, *(0,) * 9),
    "no tokens at all": (0, 0, 0, 0),
}


@pytest.mark.parametrize("rule", ["cv", "dominant_expert", "routing_entropy"])
@pytest.mark.parametrize("name", HEALTHY)
def test_no_healthy_expert_is_replaced(name, rule):
    counts = HEALTHY[name]
    state = trained(config_of(num_experts=len(counts), num_layers=1), steps=0)
    before = copied(model_tensors(state.model))
    alarm = alarm_of("revive", counts=counts, rule=rule)
    assert carry_out(alarm, state, []) == "no dead expert to replace"
    assert changed_names(before, state.model) == []


def test_an_expert_that_takes_tokens_again_is_not_replaced():
    """Its share was too small on average over the rule's window."""
    state = trained(config_of(), steps=0)
    assert carry_out(dead(3, 40, 40, 40, 30), state, []) == "no dead expert to replace"


def test_no_expert_is_revived_twice_in_a_step():
    state = trained(config_of())
    counts = (400, 0, 200, 0)
    alarms = [alarm_of("revive", counts=counts), dead(1, *counts), dead(3, *counts)]
    assert answers_to(alarms, state) == [
        "expert 3 is now a copy of expert 0, with noise",
        "expert 1 is now a copy of expert 2, with noise",
        "no dead expert to replace",
    ]


@pytest.mark.parametrize(
    ("counts", "done"),
    [
        ((64,), "no dead expert to replace"),
        ((0, 64), "expert 0 is now a copy of expert 1, with noise"),
    ],
)
def test_a_layer_with_one_or_two_experts(counts, done):
    state = trained(config_of(num_experts=len(counts)))
    assert carry_out(alarm_of("revive", counts=counts), state, []) == done
