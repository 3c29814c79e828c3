"""Alarms and their actions in whole runs."""

import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch

from moebius.config import Config
from moebius.config.observe import ObserveConfig, Rule
from moebius.errors import Interrupted, NumericError
from moebius.observe.line_file import read_lines
from moebius.train import checkpoint_store
from moebius.train.session import resume, start
from moebius.train.state import model_tensors
from tests.train.alarms import observing
from tests.train.runs import before_step, new_session, silent, train, with_train

TOKENS = 4 * 32
"""Number of tokens in a batch of the `small` configuration."""


def watched(config: Config, steps: int, **rules: Rule) -> Config:
    """Return the configuration of a run with only these rules, without evaluations."""
    observe = replace(observing(config.observe, **rules), tensorboard=False)
    return with_train(replace(config, observe=observe), steps=steps, eval_every=0)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.heavy)])
def test_a_killed_expert_is_reported_and_revived(small, optimizer, monkeypatch):
    def kill(model: Any) -> None:
        model.layers[0].moe.router.bias_E[1] = -10

    rule = Rule(threshold=0.01, patience=5, action="revive")
    session = new_session(watched(small, 40, dead_expert=rule), optimizer=optimizer)
    before_step(11, monkeypatch, kill)
    train(session)
    metrics = read_lines(session.run.metrics_path)
    shares = [line["tokens_per_expert"][0][1] / TOKENS for line in metrics]
    assert min(shares[:10]) > 0.01 and shares[10:15] == [0.0] * 5
    events = read_lines(session.run.events_path)
    first = events[0]
    assert (first["step"], first["since"], first["layer"], first["expert"]) == (15, 10, 0, 1)
    assert first["done"].startswith("expert 1 is now a copy of expert ")
    assert first["figures"]["tokens_per_expert"][1] == 0
    assert events[-1]["over"]  # a batch of 128 tokens may take more than one try
    assert sum(shares[-10:]) / 10 > 0.5 / 3


@pytest.mark.parametrize("router", ["softmax_topk", "switch", "sigmoid"])
def test_no_alarm_stops_a_run_with_one_expert(small, router):
    model = replace(small.model, num_experts=1, router_type=router, base_expansion=1.0)
    rules = {
        name: replace(rule, action="stop", window=1, patience=3)
        for name, rule in ObserveConfig().rules().items()
        if name != "loss_spike"
    }
    session = start(watched(replace(small, model=model), 12, **rules), "small", silent)
    train(session)
    assert session.state.step == 12
    assert not session.run.events_path.exists() or not read_lines(session.run.events_path)


def test_router_weights_that_are_not_numbers_end_the_run(small, monkeypatch):
    def poison(model: Any) -> None:
        model.layers[1].moe.router.weight_ED[0, 0] = torch.nan

    sigmoid = replace(small, model=replace(small.model, router_type="sigmoid", base_expansion=1.0))
    rule = Rule(threshold=0, patience=0, action="stop")
    session = start(watched(sigmoid, 20, router_logits=rule), "small", silent)
    before_step(8, monkeypatch, poison)
    match = "step 8: alarm: layer 1: router logits that are not finite: 128, above 0"
    with pytest.raises(NumericError, match=match) as refusal:
        train(session)
    assert refusal.value.exit_code == 5
    (event,) = [event for event in read_lines(session.run.events_path) if "rule" in event]
    assert (event["step"], event["rule"], event["layer"]) == (8, "router_logits", 1)
    assert event["value"] == TOKENS
    assert event["done"] == (
        "not saved: weights are not finite; the last good checkpoint is step 5"
    )
    assert refusal.value.__notes__ == ["the last good checkpoint is step 5"]
    assert checkpoint_store.latest(session.run.checkpoints, silent).name == "step-00000005"


@pytest.mark.parametrize(
    "router", ["softmax_topk", pytest.param("sigmoid scores", marks=pytest.mark.heavy), "switch"]
)
def test_a_common_start_does_not_look_like_a_dead_router(small, router):
    """Equal experts behind gates that sum to 1 leave the router without any gradient."""
    changes: dict[str, Any] = {
        "softmax_topk": {"router_top_k": 2},
        "sigmoid scores": {"router_top_k": 2, "router_score": "sigmoid"},
        "switch": {"router_type": "switch"},
    }[router]
    model = replace(small.model, aux_loss_coeff=0.0, **changes)
    rule = Rule(threshold=1e-6, patience=3, action="stop")
    config = watched(replace(small, model=model), 24, router_gradient=rule)
    session = start(with_train(config, common_start=0.5), "small", silent)
    train(session)
    norms = [line["router_grad_norm"][0] for line in read_lines(session.run.metrics_path)]
    assert router == "switch" or max(norms[:12]) < 1e-6  # the alarm would have fired
    assert min(norms[16:]) > 1e-6
    assert not read_lines(session.run.events_path)


def test_a_stop_saves_the_state_first(small, capsys):
    config = watched(small, 12, cv=Rule(threshold=0, patience=3, action="stop"))
    session = start(config, "small", silent)
    match = r"step 3: alarm: layer 0: CV .* stopped as observe\.cv\.action says"
    with pytest.raises(NumericError, match=match) as refusal:
        train(session)
    assert refusal.value.exit_code == 5 and "\n" not in str(refusal.value)
    (event,) = read_lines(session.run.events_path)
    assert (event["step"], event["done"], event["action"]) == (3, "state saved", "stop")
    assert "; state saved\n" in capsys.readouterr().out
    newest = checkpoint_store.latest(session.run.checkpoints, silent)
    assert newest.name == "step-00000003"
    # The saved state continues, and so does the alarm.
    resumed = resume(config, session.run, silent)
    with pytest.raises(NumericError, match="step 6: alarm"):
        train(resumed)
    assert [event["step"] for event in read_lines(session.run.events_path)] == [3, 6]


@pytest.mark.heavy
def test_an_interruption_at_an_evaluation_changes_no_alarm(small, monkeypatch):
    """Alarms check an evaluated step even if it is not due for logging, interrupted or not."""
    config = watched(small, 12, cv=Rule(threshold=0, patience=0, action="raise_aux"))
    config = with_train(config, log_every=4, eval_every=5)
    whole = new_session(config, name="whole")
    train(whole)
    session = start(config, "small", silent)
    with monkeypatch.context() as patched:
        before_step(5, patched, lambda model: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(session)
    resumed = resume(config, session.run, silent)
    assert resumed.state.step == 5
    train(resumed)
    assert resumed.run.events_path.read_text() == whole.run.events_path.read_text()
    expected = model_tensors(whole.state.model)
    tensors = model_tensors(resumed.state.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_every_action_is_an_event_and_each_rule_has_a_line(small, capsys):
    config = watched(
        small,
        4,
        cv=Rule(threshold=0.0, patience=4, action="raise_aux"),
        dominant_expert=Rule(threshold=0.34, patience=4),
    )
    session = start(config, "small", silent)
    train(session)
    lines = [line for line in capsys.readouterr().out.splitlines() if "alarm" in line]
    events = read_lines(session.run.events_path)
    assert len(lines) == len({event["rule"] for event in events})
    assert lines[0].endswith("; balance loss of the layer 0.01 -> 0.02")
    assert [event["layer"] for event in events if event["rule"] == "cv"] == [0, 1]
    assert session.state.aux_levels == [1, 1]
