"""What is done about an alarm: to the loss, the router, the experts, and the run."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import Config, ModelConfig, TrainConfig
from moebius.errors import Interrupted, NumericError
from moebius.model.loss import Balancing
from moebius.model.transformer import Transformer, routed_layers, seeded
from moebius.observe.alarms import Alarm, Alarms
from moebius.observe.terminal import Terminal
from moebius.rules import Action, ObserveConfig, Rule
from moebius.train import checkpoint, loop
from moebius.train.actions import NOISE, NUDGE, answer, carry_out, nudge_bias, revive
from moebius.train.log import step_metrics
from moebius.train.optimizer import named_state
from moebius.train.session import resume, start
from moebius.train.state import TrainState, aux_coefficients, model_tensors
from moebius.train.step import train_step

TRAIN = TrainConfig(steps=100, batch_size=4, seq_len=16, lr=1e-2, warmup_steps=0)
OFF: dict[str, Any] = {name: replace(rule, action="off") for name, rule in ObserveConfig().rules().items()}
DENSE_BETWEEN: dict[str, Any] = {"num_layers": 4, "num_experts": (0, 4, 0, 4), "base_expansion": 1.0, "use_mtp": True}


def config_of(optimizer: Any = "adamw", **changes: Any) -> Config:
    shape: dict[str, Any] = {"vocab_size": 61, "dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    shape |= {"moe_min_expansion": 2, "moe_max_expansion": 2}
    return Config(model=ModelConfig(**(shape | changes)), train=replace(TRAIN, optimizer=optimizer))


def tokens_of(config: Config, seed: int = 0) -> Tensor:
    length = TRAIN.seq_len + (4 if config.model.use_mtp else 1)
    return torch.randint(61, (TRAIN.batch_size, length), generator=torch.Generator().manual_seed(seed))


def trained(config: Config, steps: int = 2) -> TrainState:
    """A state whose optimizers have seen every parameter."""
    state = TrainState.new(seeded(0, config.model), config)
    for step in range(steps):
        train_step(state, tokens_of(config, step), None, config.train)
    return state


def alarm(action: Action, layer: int = 0, counts: tuple[int, ...] = (30, 20, 10, 4), **changes: Any) -> Alarm:
    values: dict[str, Any] = {"rule": "cv", "expert": -1, "value": 0.5, "threshold": 0.3, "step": 10, "since": 5, "over": False}
    return Alarm(action=action, layer=layer, figures={"tokens_per_expert": list(counts)}, **(values | changes))


def dead(expert: int, *counts: int, layer: int = 0) -> Alarm:
    return alarm("revive", layer, counts, rule="dead_expert", expert=expert, threshold=0.01)


def answered(alarms: list[Alarm], state: TrainState) -> list[str]:
    """What was recorded as done."""
    done: list[str] = []
    log: Any = type("Log", (), {"event": lambda self, alarm, what: done.append(what)})()
    answer(alarms, state, None, log, 0)  # pyright: ignore[reportArgumentType]
    return done


def copied(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


# raise_aux


def test_each_alarm_doubles_the_layers_balance_loss_up_to_32_times():
    state = trained(config_of(), steps=0)
    said = [carry_out(alarm("raise_aux", layer=1), state) for _ in range(7)]
    assert said[0] == "balance loss of the layer 0.01 -> 0.02"
    assert said[4] == "balance loss of the layer 0.16 -> 0.32"
    assert said[5] == said[6] == "balance loss of the layer stays at 0.32, its highest"
    assert state.aux_levels == [0, 5]
    assert aux_coefficients(state) == [0.01, pytest.approx(0.32)]


def test_it_starts_where_there_was_no_balance_loss_and_goes_back_there():
    state = trained(config_of(aux_loss_coeff=0.0), steps=0)
    assert aux_coefficients(state) == [0.0, 0.0]
    carry_out(alarm("raise_aux"), state)
    assert aux_coefficients(state) == [pytest.approx(0.01), 0.0]
    carry_out(alarm("raise_aux", over=True), state)
    assert aux_coefficients(state) == [0.0, 0.0]
    carry_out(alarm("raise_aux", over=True), state)  # of another rule: there is nothing left to relax
    assert state.aux_levels == [0, 0]


def test_it_is_relaxed_level_by_level_once_the_figure_is_back():
    config = config_of()
    state = trained(config, steps=0)
    state.alarms = Alarms(replace(ObserveConfig(), **(OFF | {"cv": Rule(threshold=0.3, patience=3, action="raise_aux")})))
    levels = []
    for step in range(1, 40):
        line = {"step": step, "tokens_per_expert": [[1, 1], [1, 1]], "cv": [0.1, 0.9 if step <= 12 else 0.1]}
        for each in state.alarms.look(line):
            carry_out(each, state)
        levels.append(state.aux_levels[1])
    raised = [0] * 2 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    relaxed = [3] * 3 + [2] * 3 + [1] * 3 + [0] * 16
    assert levels == raised + relaxed
    assert state.aux_levels == [0, 0]


def test_a_relapse_while_relaxing_raises_it_again():
    state = trained(config_of(), steps=0)
    state.alarms = Alarms(replace(ObserveConfig(), **(OFF | {"cv": Rule(threshold=0.3, patience=3, action="raise_aux")})))
    levels = []
    for step in range(1, 23):
        beyond = step <= 6 or 10 <= step <= 12
        for each in state.alarms.look({"step": step, "tokens_per_expert": [[1, 1]], "cv": [0.9 if beyond else 0.1]}):
            carry_out(each, state)
        levels.append(state.aux_levels[0])
    assert levels == [0, 0, 1, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("configured", [0.0, 0.02])
def test_the_raised_loss_is_what_the_step_minimises(configured):
    config = config_of(aux_loss_coeff=configured)
    state = trained(config)
    for _ in range(3):
        carry_out(alarm("raise_aux", layer=1), state)
    plain, raised = configured, (configured or 0.005) * 8
    loss = state.model.loss(tokens_of(config), None, Balancing(aux_coefficients(state)))
    assert loss.balance_M is not None
    by_hand = loss.next_token + plain * loss.balance_M[0] + raised * loss.balance_M[1]
    torch.testing.assert_close(loss.total, by_hand)
    routers = [layer.router.weight_ED for layer in routed_layers(state.model)]
    expected = torch.stack([gradient.norm() for gradient in torch.autograd.grad(by_hand, routers)])
    result = train_step(state, tokens_of(config), None, config.train)
    torch.testing.assert_close(result.router_grad_norm_M, expected)


# nudge_bias


def test_the_nudge_by_hand():
    layer = routed_layers(trained(config_of()).model)[0]
    nudge_bias(layer, [16, 32, 0, 16])  # loads of 1, 2, 0 and 1 times the mean
    torch.testing.assert_close(layer.router.bias_E, torch.tensor([0.0, -NUDGE, NUDGE, 0.0]))
    nudge_bias(layer, [0, 64, 0, 0])  # 4 times the mean counts as twice
    expected = torch.tensor([0.0, -NUDGE, NUDGE, 0.0]) + NUDGE * torch.tensor([1.0, -1.0, 1.0, 1.0])
    torch.testing.assert_close(layer.router.bias_E, expected - expected.mean())


@pytest.mark.parametrize("counts", [[16, 16, 16, 16], [0, 0, 0, 0]])
def test_a_load_that_is_even_is_not_nudged(counts):
    layer = routed_layers(trained(config_of()).model)[0]
    nudge_bias(layer, counts)
    torch.testing.assert_close(layer.router.bias_E, torch.zeros(4))


def test_nudges_move_the_choice_to_the_idle_and_stay_in_bounds():
    config = config_of()
    state = trained(config)
    router = routed_layers(state.model)[1].router
    with torch.no_grad():
        router.bias_E.copy_(torch.tensor([0.9, -0.3, -0.3, -0.3]))
    tokens = tokens_of(config)[:, :-1]

    def counts() -> list[int]:
        return [round(count) for count in state.model(tokens).stats[1].tokens_per_expert_E.tolist()]

    first = counts()
    assert first == [64, 0, 0, 0]
    for _ in range(6):  # by 0.15 each: 0.1, and 0.05 that the others gain
        carry_out(alarm("nudge_bias", layer=1, counts=tuple(counts())), state)
    torch.testing.assert_close(router.bias_E, torch.zeros(4), atol=1e-6, rtol=0)
    assert min(counts()) > 0
    for _ in range(40):  # whatever is said of them, biases end where every probability is overruled
        carry_out(alarm("nudge_bias", layer=1, counts=(0, 0, 0, 64)), state)
    assert router.bias_E.abs().max() <= 1 and router.bias_E[3] == -1
    assert counts()[3] == 0
    assert not routed_layers(state.model)[0].router.bias_E.any()


def test_an_alarm_that_is_over_moves_no_bias_and_copies_nobody():
    state = trained(config_of())
    before = copied(model_tensors(state.model))
    for action in ("nudge_bias", "revive", "warn", "stop"):
        assert carry_out(alarm(action, over=True), state) == ""
    assert carry_out(alarm("warn"), state) == ""
    assert all(torch.equal(before[name], value) for name, value in model_tensors(state.model).items())


# revive


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_revived_expert_is_a_copy_with_noise_and_nothing_else_changes(optimizer):
    state = trained(config_of(optimizer))
    layer = routed_layers(state.model)[1]
    with torch.no_grad():
        layer.router.bias_E.copy_(torch.tensor([0.1, -0.2, 0.3, -0.2]))
    before, moments = copied(model_tensors(state.model)), copied(named_state(state.optimizers, state.model))
    random = torch.get_rng_state()
    said = carry_out(dead(3, 20, 4, 40, 0, layer=1), state)
    assert said == "expert 3 is now a copy of expert 2, with noise"
    assert torch.equal(torch.get_rng_state(), random)

    changed = [name for name, value in model_tensors(state.model).items() if not torch.equal(value, before[name])]
    experts = ["experts.w_gate_EDF", "experts.w_up_EDF", "experts.w_down_EFD"]
    parts = [f"layers.1.moe.{part}" for part in ("router.weight_ED", *experts)]
    assert sorted(changed) == sorted([*parts, "layers.1.moe.router.bias_E"])
    for name, value in model_tensors(state.model).items():
        if name in changed:
            assert torch.equal(value[:3], before[name][:3]), name
    assert layer.router.bias_E[3] == layer.router.bias_E[2] == before["layers.1.moe.router.bias_E"][2]
    for name in parts:
        source = before[name][2]
        noise = (model_tensors(state.model)[name][3] - source) / source.std()
        assert noise.std() == pytest.approx(NOISE, rel=0.1 if source.ndim == 2 else 0.5), name
        assert abs(noise.mean()) < 0.5 * NOISE, name

    found = named_state(state.optimizers, state.model)
    assert found.keys() == moments.keys()
    entries = {name.rpartition("/")[2] for name in found if any(name.startswith(f"{part}/") for part in parts)}
    assert entries == (
        {"step", "exp_avg", "exp_avg_sq", "momentum"} if optimizer == "muon" else {"step", "exp_avg", "exp_avg_sq"}
    )
    for name, value in found.items():
        of_the_layer = name.rpartition("/")[0] in parts and value.ndim
        if of_the_layer:
            assert moments[name][2].any() and torch.equal(value[3], moments[name][2]), name
            value, moments[name] = value[:3], moments[name][:3]
        assert torch.equal(value, moments[name]), name


def test_the_same_alarm_revives_the_same_expert():
    first, again, later = (trained(config_of()) for _ in range(3))
    for seed, (state, step) in enumerate(((first, 10), (again, 10), (later, 11))):
        torch.manual_seed(seed)  # wherever the run's own generator is
        carry_out(replace(dead(3, 20, 4, 40, 0), step=step), state)
    weights = [routed_layers(state.model)[0].experts.w_up_EDF[3] for state in (first, again, later)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_state_without_optimizer_steps_can_be_revived():
    state = trained(config_of(), steps=0)
    layer = routed_layers(state.model)[0]
    revive(layer, 0, 1, state.optimizers, seed=0)
    assert torch.nn.functional.cosine_similarity(layer.router.weight_ED[0], layer.router.weight_ED[1], dim=0) > 0.95
    train_step(state, tokens_of(config_of()), None, TRAIN)


def nearest_to(model: Transformer, expert: int, before: Tensor) -> int:
    """The expert whose weights, as they were before, are closest to this one's."""
    now = routed_layers(model)[0].experts.w_up_EDF[expert]
    return int((before - now).flatten(1).norm(dim=1).argmin())


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
    before = routed_layers(state.model)[0].experts.w_up_EDF.detach().clone()
    said = answered([dead(expert, *counts) for expert in sources], state)
    assert said == [f"expert {weak} is now a copy of expert {busy}, with noise" for weak, busy in sources.items()]
    assert {weak: nearest_to(state.model, weak, before) for weak in sources} == sources


def test_an_expert_is_dead_where_its_rule_says_so():
    """A threshold of 5%: what has 1.6% is no expert to copy, either."""
    counts = (960, 10, 14, 16)
    state = trained(config_of())
    before = routed_layers(state.model)[0].experts.w_up_EDF.detach().clone()
    answered([replace(dead(expert, *counts), threshold=0.05) for expert in (1, 2, 3)], state)
    assert [nearest_to(state.model, expert, before) for expert in (1, 2, 3)] == [0, 0, 0]


def test_layers_do_not_share_their_count_of_revived_experts():
    state = trained(config_of())
    said = answered([dead(3, 40, 24, 10, 0, layer=0), dead(3, 40, 24, 10, 0, layer=1)], state)
    assert said == ["expert 3 is now a copy of expert 0, with noise"] * 2


@pytest.mark.parametrize(
    "counts",
    [(990, 2, 3, 5), (5, 3, 990, 2), (0, 100, 0), (100, 0, 0, 0), (50, 1, 48, 1, 0, 0, 0, 0)],
)
def test_nobody_is_copied_from_a_dead_expert_nor_twice_the_same_way(counts):
    """However many are dead: each comes alive, as a copy of one that was alive, and no two are twins."""
    state = trained(config_of(num_experts=len(counts)))
    experts = routed_layers(state.model)[0].experts
    before = experts.w_up_EDF.detach().clone()
    deceased = [expert for expert, count in enumerate(counts) if count < 0.01 * sum(counts)]
    said = answered([dead(expert, *counts) for expert in deceased], state)
    assert all("copy" in line and "no busier" not in line for line in said), said
    assert not {nearest_to(state.model, expert, before) for expert in deceased} & set(deceased)
    for index, one in enumerate(deceased):
        assert not any(torch.equal(experts.w_up_EDF[one], experts.w_up_EDF[other]) for other in deceased[:index])


def test_of_a_layer_as_a_whole_the_idlest_is_revived_from_the_busiest():
    state = trained(config_of())
    assert carry_out(alarm("revive", counts=(20, 4, 36, 4)), state) == "expert 3 is now a copy of expert 2, with noise"
    dominant = alarm("revive", counts=(4, 50, 8, 2), rule="dominant_expert", expert=1)
    assert carry_out(dominant, state) == "expert 3 is now a copy of expert 1, with noise"


@pytest.mark.parametrize("counts", [(64,), (0, 64)])
def test_one_or_two_experts(counts):
    state = trained(config_of(num_experts=len(counts)))
    said = carry_out(alarm("revive", counts=counts), state)
    assert said == ("no busier expert to copy" if len(counts) == 1 else "expert 0 is now a copy of expert 1, with noise")


# which layer


def test_layers_without_experts_and_the_mtp_layer_are_told_apart():
    config = config_of(**DENSE_BETWEEN)
    state = TrainState.new(seeded(0, config.model), config)
    assert state.aux_levels == [0, 0, 0]
    names = {1: "layers.1.moe", 3: "layers.3.moe", 4: "mtp.moe"}  # the MTP layer's figures come last
    for place, (layer, name) in enumerate(names.items()):
        before = copied(model_tensors(state.model))
        carry_out(alarm("nudge_bias", layer=layer), state)
        changed = [key for key, value in model_tensors(state.model).items() if not torch.equal(value, before[key])]
        assert changed == [f"{name}.router.bias_E"]
        carry_out(dead(3, 30, 20, 10, 0, layer=layer), state)
        changed = {key for key, value in model_tensors(state.model).items() if not torch.equal(value, before[key])}
        assert changed and all(key.startswith(f"{name}.") for key in changed)
        carry_out(alarm("raise_aux", layer=layer), state)
        assert state.aux_levels == [1] * (place + 1) + [0] * (2 - place)


def test_the_metrics_number_the_layers_as_alarms_do():
    config = config_of(**DENSE_BETWEEN)
    state = TrainState.new(seeded(0, config.model), config)
    router = routed_layers(state.model)[2].router
    assert state.model.mtp is not None and state.model.mtp.moe.router is router
    with torch.no_grad():
        router.bias_E[2] = -10
    metrics = step_metrics(config, state, train_step(state, tokens_of(config), None, config.train))
    assert [len(counts) for counts in metrics["tokens_per_expert"]] == [0, 4, 0, 4, 4]
    assert metrics["router_grad_norm"][0] is metrics["routing_entropy"][2] is metrics["layer_balance_loss"][0] is None
    watching = Alarms(replace(ObserveConfig(), **(OFF | {"dead_expert": Rule(threshold=0.001, patience=0, action="revive")})))
    found = [each for each in watching.look(metrics) if each.layer == 4]
    assert [(each.layer, each.expert) for each in found] == [(4, 2)]
    carry_out(found[0], state)
    assert router.bias_E[2] == 0


def test_a_dense_last_layer_leaves_mtp_without_experts():
    config = config_of(num_layers=3, num_experts=(0, 4, 0), base_expansion=1.0, use_mtp=True)
    state = TrainState.new(seeded(0, config.model), config)
    metrics = step_metrics(config, state, train_step(state, tokens_of(config), None, config.train))
    assert [len(counts) for counts in metrics["tokens_per_expert"]] == [0, 4, 0, 0]
    carry_out(alarm("raise_aux", layer=1), state)
    assert state.aux_levels == [1]


# whole runs


def silent(line: str) -> None:
    pass


def watched(config: Config, steps: int, **rules: Rule) -> Config:
    """These rules alone."""
    values: dict[str, Any] = {"progress": False, "tensorboard": False}
    observe = replace(ObserveConfig(), **(OFF | values | rules))
    return replace(config, observe=observe, train=replace(config.train, steps=steps, eval_every=0))


def go(session: loop.Session) -> None:
    loop.train(session, Terminal(session.config.train.steps, session.state.step, progress=False))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def before_step(step: int, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Interfere with a run."""
    original = loop.train_step

    def interfered(state: TrainState, *arguments: Any) -> Any:
        if state.step + 1 == step:
            with torch.no_grad():
                change(state.model)
        return original(state, *arguments)

    monkeypatch.setattr(loop, "train_step", interfered)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_expert_is_reported_and_revived(small, optimizer, monkeypatch):
    def kill(model: Any) -> None:
        model.layers[0].moe.router.bias_E[1] = -10

    rule = Rule(threshold=0.01, patience=5, action="revive")
    config = watched(small, 40, dead_expert=rule)
    session = start(replace(config, train=replace(config.train, optimizer=optimizer)), "small", silent)
    before_step(11, monkeypatch, kill)
    go(session)
    shares = [line["tokens_per_expert"][0][1] / 128 for line in lines(session.run.metrics_path)]
    assert min(shares[:10]) > 0.01 and shares[10:15] == [0.0] * 5
    events = lines(session.run.events_path)
    first = events[0]
    assert (first["step"], first["since"], first["layer"], first["expert"]) == (15, 10, 0, 1)
    assert first["done"].startswith("expert 1 is now a copy of expert ") and first["figures"]["tokens_per_expert"][1] == 0
    assert events[-1]["over"]  # a batch of 128 tokens may take more than one try
    assert sum(shares[-10:]) / 10 > 0.5 / 3


def test_router_weights_that_are_not_numbers_end_the_run(small, monkeypatch):
    def poison(model: Any) -> None:
        model.layers[1].moe.router.weight_ED[0, 0] = torch.nan

    small = replace(small, model=replace(small.model, router_type="sigmoid", base_expansion=1.0))
    config = watched(small, 20, router_logits=Rule(threshold=0, patience=0, action="stop"))
    session = start(config, "small", silent)
    before_step(8, monkeypatch, poison)
    with pytest.raises(NumericError, match="step 8: alarm: layer 1: router logits that are not finite: 128, above 0") as error:
        go(session)
    assert error.value.exit_code == 5
    (event,) = [event for event in lines(session.run.events_path) if "rule" in event]
    assert (event["step"], event["rule"], event["layer"], event["value"]) == (8, "router_logits", 1, 128)
    assert event["done"] == "not saved: weights are not finite; the last checkpoint is unharmed"
    assert checkpoint.latest(session.run.checkpoints, silent).name == "step-00000005"


def test_a_stop_saves_the_state_first(small, capsys):
    config = watched(small, 12, cv=Rule(threshold=0, patience=3, action="stop"))
    session = start(config, "small", silent)
    with pytest.raises(NumericError, match=r"step 3: alarm: layer 0: CV .* stopped as observe\.cv\.action says") as error:
        go(session)
    assert error.value.exit_code == 5 and "\n" not in str(error.value)
    (event,) = lines(session.run.events_path)
    assert (event["step"], event["done"], event["action"]) == (3, "state saved", "stop")
    assert "; state saved\n" in capsys.readouterr().out
    newest = checkpoint.latest(session.run.checkpoints, silent)
    assert newest.name == "step-00000003"
    # what was saved goes on, and the alarm with it
    resumed = resume(config, session.run, silent)
    with pytest.raises(NumericError, match="step 6: alarm"):
        go(resumed)
    assert [event["step"] for event in lines(session.run.events_path)] == [3, 6]


def test_an_interruption_at_an_evaluation_changes_no_alarm(small, monkeypatch):
    """Step 5 is evaluated and therefore looked at, though it is no step to be logged: interrupted there, it still is."""
    config = watched(small, 12, cv=Rule(threshold=0, patience=0, action="raise_aux"))
    config = replace(config, train=replace(config.train, log_every=4, eval_every=5))
    whole = start(replace(config, train=replace(config.train, name="whole")), "small", silent)
    go(whole)
    session = start(config, "small", silent)
    before_step(5, monkeypatch, lambda model: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        go(session)
    monkeypatch.undo()
    resumed = resume(config, session.run, silent)
    assert resumed.state.step == 5
    go(resumed)
    assert resumed.run.events_path.read_text() == whole.run.events_path.read_text()
    assert all(
        torch.equal(value, model_tensors(whole.state.model)[name]) for name, value in model_tensors(resumed.state.model).items()
    )


def test_every_action_is_told_where_it_can_be_read(small, capsys):
    now = {"threshold": 0.0, "patience": 4}
    session = start(
        watched(small, 4, cv=Rule(action="raise_aux", **now), dominant_expert=Rule(threshold=0.34, patience=4)), "", silent
    )
    go(session)
    told = [line for line in capsys.readouterr().out.splitlines() if "alarm" in line]
    events = lines(session.run.events_path)
    assert len(told) == len(events) >= 2
    assert told[0].endswith("; balance loss of the layer 0.01 -> 0.02")
    assert [event["layer"] for event in events if event["rule"] == "cv"] == [0, 1]
    assert session.state.aux_levels == [1, 1]
