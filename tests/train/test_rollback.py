"""A loss spike: back to before it, on without its batches, and not for ever."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moebius.config import Config
from moebius.errors import NumericError
from moebius.observe.terminal import Terminal
from moebius.rules import Rule
from moebius.train import checkpoint
from moebius.train.loop import Session, train
from moebius.train.session import resume, start

STEPS = 30


def watching(small: Config, **train: Any) -> Config:
    spikes = Rule(threshold=1.3, window=20, patience=0, action="roll_back")
    return replace(
        small,
        train=replace(small.train, steps=STEPS, lr=1e-2, eval_every=0, keep_last=0, **train),
        observe=replace(small.observe, loss_spike=spikes),
    )


def spoil(session: Session, batches: set[int]) -> list[int]:
    """These batches are noise. Returns the batches that are read, as they are."""
    original, read = session.batches.at, []

    def at(batch: int) -> np.ndarray:
        read.append(batch)
        tokens = original(batch)
        return np.random.default_rng(batch).integers(1, 257, tokens.shape) if batch in batches else tokens

    session.batches.at = at  # pyright: ignore[reportAttributeAccessIssue]
    return read


def go(session: Session) -> None:
    train(session, Terminal(session.config.train.steps, session.state.step, progress=False))


def lines(path: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_spike_is_rolled_back_and_its_batches_are_left_out(small):
    session = start(watching(small), "small", lambda line: None)
    read = spoil(session, {17})
    go(session)
    assert session.state.step == STEPS and session.state.rollbacks == 1
    assert session.state.batch == STEPS + 3  # step 18 was the spike; the checkpoint before is of step 15
    assert read == list(range(STEPS + 3))  # no batch twice
    (event,) = [event for event in lines(session.run.events_path) if event["rule"] == "loss_spike"]
    assert (event["step"], event["done"]) == (18, "rolled back to step 15, leaving out 3 batches")
    assert event["value"] > 1.3 and event["figures"]["loss"] > 4
    metrics = lines(session.run.metrics_path)
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert max(line["loss"] for line in metrics[10:]) < 1.3 * metrics[10]["loss"]  # the spike has gone


def test_a_run_that_stops_after_a_rollback_goes_on_with_the_same_batches(small):
    whole = start(watching(small, name="whole"), "small", lambda line: None)
    spoil(whole, {17})
    go(whole)
    broken = start(watching(small, name="broken"), "small", lambda line: None)
    spoil(broken, {17})
    go(broken)
    newest = {path.name for path in checkpoint.complete(broken.run.checkpoints)}
    assert newest == {f"step-{step:08d}" for step in (5, 10, 15, 20, 25, 30)}
    checkpoint.discard_after(broken.run.checkpoints, 20)
    resumed = resume(broken.config, broken.run, lambda line: None)
    assert (resumed.state.step, resumed.state.batch, resumed.state.rollbacks) == (20, 23, 1)
    go(resumed)
    expected = checkpoint.load(whole.run.checkpoints / "step-00000030")[0]
    found = checkpoint.load(resumed.run.checkpoints / "step-00000030")[0]
    assert all((expected["model"][name] == found["model"][name]).all() for name in expected["model"])


def test_rollbacks_are_bounded(small):
    session = start(watching(small, max_rollbacks=2), "small", lambda line: None)
    spoil(session, set(range(17, 60)))
    with pytest.raises(NumericError, match=r"rolled back 2 times already, train\.max_rollbacks=2") as stopped:
        go(session)
    assert stopped.value.exit_code == 5
    checkpoint.load(checkpoint.latest(session.run.checkpoints, lambda line: None))


def test_without_a_checkpoint_from_before_it_says_so_and_goes_on(small):
    session = start(watching(small, checkpoint_every=0), "small", lambda line: None)
    spoil(session, {17})
    go(session)
    events = [event for event in lines(session.run.events_path) if event["rule"] == "loss_spike"]
    assert events[0]["done"] == "not rolled back: there is no checkpoint of step 17 or before"
    assert session.state.step == session.state.batch == STEPS
