"""A whole run: what it writes, that it learns, and that stopping it changes nothing."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import Config
from moebius.errors import CheckpointError, Interrupted, NumericError
from moebius.observe.balance import NOTHING
from moebius.observe.json_lines import read_lines
from moebius.observe.terminal import Terminal
from moebius.rules import Rule
from moebius.train import checkpoint, loop
from moebius.train.evaluate import Evaluation
from moebius.train.loop import Session, train
from moebius.train.run_directory import RunDirectory
from moebius.train.session import resume, start


def silent(line: str) -> None:
    pass


def go(session: Session) -> Evaluation:
    return train(session, Terminal(session.config.train.steps, session.state.step, progress=False))


def metrics(session: Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in session.run.metrics_path.read_text().splitlines()]


def with_train(config: Config, **values: Any) -> Config:
    return replace(config, train=replace(config.train, **values))


def everything(session: Session) -> dict[str, Tensor]:
    """The newest checkpoint: weights, optimizer state, random generators."""
    tensors, _ = checkpoint.load(checkpoint.latest(session.run.checkpoints, silent))
    return {f"{group}/{name}": tensor for group, named in tensors.items() for name, tensor in named.items()}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_loss_falls_and_every_figure_is_written(small):
    session = start(with_train(small, steps=60, log_every=5), "small", silent)
    evaluation = go(session)
    lines = metrics(session)
    assert [line["step"] for line in lines] == list(range(5, 61, 5))
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert evaluation.loss == lines[-1]["val_loss"] and evaluation.bits_per_byte == lines[-1]["val_bpb"]
    asked = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_gb", "balance_loss"}
    asked |= {"z_loss", *NOTHING, "router_grad_norm", "layer_balance_loss", "layer_z_loss"}
    for line in lines:
        assert asked <= line.keys()
        assert line["tokens"] == line["step"] * 4 * 32
        assert [sum(layer) for layer in line["tokens_per_expert"]] == [4 * 32, 4 * 32]  # top-1: each token once a layer
        assert all(len(line[name]) == 2 for name in (*NOTHING, "router_grad_norm", "layer_balance_loss", "layer_z_loss"))
        assert line["not_finite_logits"] == [0, 0] and line["unrouted_share"] == line["dropped_share"] == [0.0, 0.0]
        assert all(0 < norm < line["grad_norm"] for norm in line["router_grad_norm"])
        assert all(
            0 < entropy <= 1 and 1 / 3 <= gate <= 1
            for entropy, gate in zip(line["routing_entropy"], line["mean_gate"], strict=True)
        )
        assert line["balance_loss"] == pytest.approx(sum(line["layer_balance_loss"]) / 2)
        assert 0 < line["mfu"] < 1 and line["memory_gb"] > 0 and line["tokens_per_second"] > 0
    assert RunDirectory.open(str(session.run.root)).config() == session.config


@pytest.mark.parametrize(
    "variation",
    [
        {"train": {"optimizer": "adamw"}},
        {"train": {"optimizer": "muon", "micro_batch_size": 2, "common_start": 0.6}},
        {"model": {"router_type": "sigmoid", "base_expansion": 1.0, "use_mtp": True}},
        {"model": {"router_type": "switch", "expert_dropout": 0.3}},
        {
            "model": {"router_bias_rate": 0.01, "aux_loss_scope": "global_batch", "router_jitter": 0.1},
            "train": {"micro_batch_size": 2},
            "observe": {
                "cv": Rule(threshold=0.2, window=3, patience=2, action="raise_aux"),
                "dead_expert": Rule(threshold=0.33, patience=2, action="revive"),
                "dominant_expert": Rule(threshold=0.34, window=2, patience=2, action="nudge_bias"),
            },
        },
    ],
    ids=["adamw", "muon, accumulation, common start", "sigmoid with MTP", "switch with dropout", "bias and alarms that act"],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(small, variation, one_thread):
    for section, values in variation.items():
        small = replace(small, **{section: replace(getattr(small, section), **values)})
    whole = start(with_train(small, name="whole"), "small", silent)
    go(whole)

    broken = start(with_train(small, name="broken"), "small", silent)
    steps = iter(range(100))

    def stop_after_seven(*args: Any) -> Any:
        if next(steps) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    original, loop.train_step = loop.train_step, stop_after_seven
    try:
        with pytest.raises(Interrupted) as stopped:
            go(broken)
    finally:
        loop.train_step = original
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert "step 7" in str(stopped.value)

    torch.manual_seed(999)  # a new process's generator is anywhere
    resumed = resume(broken.config, broken.run, silent)
    assert resumed.state.step == 7
    go(resumed)
    expected, found = everything(whole), everything(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    timing = {"tokens_per_second", "mfu", "memory_gb"}
    assert without(metrics(whole), timing) == without(metrics(resumed), timing)
    assert whole.run.events_path.read_text() == resumed.run.events_path.read_text()
    if "observe" in variation:  # every action was taken on both sides of the interruption
        acted = {(event["action"], event["step"] > 7) for event in read_lines(whole.run.events_path) if "action" in event}
        assert acted >= {(action, later) for action in ("raise_aux", "revive", "nudge_bias") for later in (False, True)}


def without(lines: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in names} for line in lines]


def test_resuming_uses_the_newest_intact_checkpoint_and_says_what_it_passed_over(small):
    session = start(small, "small", silent)
    go(session)
    newest = session.run.checkpoints / "step-00000012" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    said: list[str] = []
    resumed = resume(session.config, session.run, said.append)
    assert resumed.state.step == 10
    assert sum("passed over" in line and "step-00000012" in line for line in said) == 1
    go(resumed)
    assert [line["step"] for line in metrics(resumed)] == list(range(1, 13))  # the lines of steps run again are replaced


def test_a_finished_run_can_be_made_longer(small):
    session = start(small, "small", silent)
    go(session)
    longer = resume(with_train(small, steps=15), session.run, silent)
    go(longer)
    assert [line["step"] for line in metrics(longer)] == list(range(1, 16))


def test_a_run_does_not_go_on_with_another_text(small):
    text = Path(small.data.source)
    before = text.read_text()
    session = start(small, "small", silent)
    go(session)
    text.write_text(before.replace("square of 7", "square of 8"))
    with pytest.raises(CheckpointError, match=r"step-00000012: trained on another text than data\.source now gives"):
        resume(session.config, session.run, silent)
    text.write_text(before)
    assert resume(session.config, session.run, silent).state.step == 12


def break_gradients_of(steps: set[int], session: Session) -> None:
    """The embedding's gradient of these steps is not finite; the loss is."""
    session.state.model.embedding.weight.register_hook(
        lambda gradient: gradient * torch.nan if session.state.step + 1 in steps else gradient
    )


def test_a_run_of_updates_that_are_not_finite_ends_with_the_last_checkpoint_unharmed(small):
    session = start(with_train(small, log_every=100, eval_every=0, max_skipped=3), "small", silent)
    break_gradients_of(set(range(6, 13)), session)
    with pytest.raises(NumericError, match="step 10: loss or gradient not finite 5 times in a row") as error:
        go(session)  # it looks when it logs or saves, so a little later; nothing is lost by that
    assert error.value.exit_code == 5
    newest = checkpoint.latest(session.run.checkpoints, silent)
    assert newest.name == "step-00000005"
    assert all(tensor.isfinite().all() for tensor in checkpoint.load(newest)[0]["model"].values())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_exactly_the_broken_updates_are_skipped(small, optimizer):
    """As if the batches of steps 3, 4 and 8 were not there, and what came after them had their place."""
    small = replace(small, model=replace(small.model, router_bias_rate=0.01))
    config = with_train(small, optimizer=optimizer, schedule="wsd", warmup_steps=0, decay_fraction=0.0, log_every=1)
    broken = start(replace(config, train=replace(config.train, name="broken")), "small", silent)
    break_gradients_of({3, 4, 8}, broken)
    go(broken)
    without = start(replace(config, train=replace(config.train, name="without", steps=9)), "small", silent)
    kept = iter(batch for batch in range(12) if batch + 1 not in {3, 4, 8})
    original = without.batches.at
    without.batches.at = lambda step: original(next(kept))  # pyright: ignore[reportAttributeAccessIssue]
    go(without)
    expected, found = everything(without), everything(broken)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    events = [json.loads(line) for line in broken.run.events_path.read_text().splitlines()]
    skipped = [event for event in events if event["event"] == "skipped"]
    assert [(event["step"], event["batch"], event["in_a_row"]) for event in skipped] == [(3, 2, 1), (4, 3, 2), (8, 7, 1)]
    assert skipped[0]["sequences"] == [8, 11]


def test_weights_that_are_not_finite_are_never_saved(small):
    session = start(with_train(small, eval_every=0, max_skipped=100, log_every=100), "small", silent)
    with torch.no_grad():
        session.state.model.lm_head.weight[0, 0] = torch.nan
    go(session)
    assert not list(session.run.checkpoints.glob("step-*"))


def test_accumulation_is_one_large_batch(small):
    # the balance loss is of a micro-batch, so it is left out
    small = replace(small, model=replace(small.model, aux_loss_coeff=0.0))
    together = start(with_train(small, steps=3, name="together"), "small", silent)
    apart = start(with_train(small, steps=3, name="apart", micro_batch_size=1), "small", silent)
    go(together)
    go(apart)
    for ours, theirs in zip(metrics(together), metrics(apart), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours["tokens_per_expert"] == theirs["tokens_per_expert"]  # every token is counted once


def test_a_seed_is_a_run(small):
    first, second, other = (
        start(with_train(small, steps=2, name=name, seed=seed), "small", silent)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    losses = [go(session).loss for session in (first, second, other)]
    assert losses[0] == losses[1] != losses[2]


def test_a_run_that_cannot_begin_leaves_no_directory(small, tmp_path: Path):
    with pytest.raises(Exception, match="too few for one batch"):
        start(with_train(small, batch_size=4000), "small", silent)
    assert not (tmp_path / "runs").exists()
