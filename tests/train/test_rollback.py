"""A run returns to before a loss spike, continues without its batches, and gives up eventually."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moebius.config import Config
from moebius.config.observe import Rule
from moebius.errors import NumericError, StorageError
from moebius.observe.line_file import read_lines
from moebius.observe.tensorboard import FOLDER
from moebius.train import checkpoint, checkpoint_store
from moebius.train.session import Session, resume, start
from tests.train.runs import silent, train, with_train

STEPS = 30
SECONDS = 60
"""How long to wait for the thread that writes checkpoints."""
B = 4
"""Number of sequences in a batch."""
SPOILED = 17
"""Index of the batch that is replaced with noise. It is that of step 18; the last checkpoint
before it is that of step 15."""


def watching(small: Config, **changes: Any) -> Config:
    """Return the configuration of a run that is rolled back at a loss spike."""
    rule = Rule(threshold=1.3, window=20, patience=0, action="roll_back")
    settings: dict[str, Any] = {"steps": STEPS, "lr": 1e-2, "eval_every": 0, "keep_last": 0}
    config = with_train(small, **(settings | changes))
    return replace(config, observe=replace(config.observe, loss_spike=rule))


def spoil(session: Session, batches: set[int]) -> list[int]:
    """Replace these batches with noise. Return a list that records every batch that is read."""
    read_batch, batches_read = session.feed.batches.at, []

    def at(sequence: int, *rank: int) -> np.ndarray:
        batch = sequence // B
        batches_read.append(batch)
        tokens_BL = read_batch(sequence, *rank)
        if batch not in batches:
            return tokens_BL
        return np.random.default_rng(batch).integers(1, 257, tokens_BL.shape)

    session.feed.batches.at = at  # pyright: ignore[reportAttributeAccessIssue]
    return batches_read


def spikes(session: Session) -> list[dict[str, Any]]:
    events = read_lines(session.run.events_path)
    return [event for event in events if event["rule"] == "loss_spike"]


def test_a_spike_is_rolled_back_and_its_batches_are_left_out(small):
    session = start(watching(small), "small", silent)
    batches_read = spoil(session, {SPOILED})
    train(session)
    assert session.state.step == STEPS and session.state.rollbacks == 1
    assert session.state.sequences == B * (STEPS + 3)
    assert batches_read == list(range(STEPS + 3))  # no batch twice
    (event,) = spikes(session)
    assert (event["step"], event["done"]) == (
        18,
        "rolled back to step 15, leaving out 12 sequences",
    )
    assert event["value"] > 1.3 and event["figures"]["loss"] > 4

    # metrics.jsonl and TensorBoard show one history, in which there was no spike
    metrics = read_lines(session.run.metrics_path)
    losses = {line["step"]: line["loss"] for line in metrics}
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert max(losses[step] for step in range(11, STEPS + 1)) < 1.3 * losses[11]
    board = EventAccumulator(str(session.run.root / FOLDER), size_guidance={"scalars": 0})
    board.Reload()
    tags = {"1_loss": "loss", "4_optimizer": "grad_norm", "2_speed": "tokens"}
    for group, key in tags.items():
        tag = f"{group}/{key}"
        shown = [(scalar.step, scalar.value) for scalar in board.Scalars(tag)]
        expected = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in metrics]
        assert shown == expected, tag


def test_a_run_that_stops_after_a_rollback_goes_on_with_the_same_batches(small):
    whole = start(watching(small, name="whole"), "small", silent)
    spoil(whole, {SPOILED})
    train(whole)
    broken = start(watching(small, name="broken"), "small", silent)
    spoil(broken, {SPOILED})
    train(broken)
    newest = {path.name for path in checkpoint_store.complete(broken.run.checkpoints)}
    assert newest == {f"step-{step:08d}" for step in (5, 10, 15, 20, 25, 30)}
    checkpoint_store.discard_after(broken.run.checkpoints, 20)
    resumed = resume(broken.config, broken.run, silent)
    assert (resumed.state.step, resumed.state.sequences) == (20, B * 23)
    assert resumed.state.rollbacks == 1
    train(resumed)
    expected, weights = (
        checkpoint.load(session.run.checkpoints / "step-00000030")[0]["model"]
        for session in (whole, resumed)
    )
    assert all(torch.equal(expected[name], weights[name]) for name in expected)


def test_a_run_that_is_killed_right_after_a_rollback_does_not_read_the_spoiled_batches(small):
    killed = start(watching(small, checkpoint_every=5), "small", silent)
    batches_read = spoil(killed, {SPOILED})
    die_at(SPOILED + 2, killed)
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    assert batches_read == list(range(SPOILED + 2))
    resumed = resume(killed.config, killed.run, silent)
    assert (resumed.state.step, resumed.state.sequences) == (15, B * 18)
    assert resumed.state.rollbacks == 1
    batches_read = spoil(resumed, {SPOILED})
    train(resumed)
    assert batches_read == list(range(18, STEPS + 3))
    (event,) = spikes(resumed)
    assert event["done"] == "rolled back to step 15, leaving out 12 sequences"


def die_at(last: int, session: Session) -> None:
    """Make reading a batch end the run as a signal would."""
    read_batch = session.feed.batches.at

    def at(sequence: int, *rank: int) -> np.ndarray:
        if sequence == B * last:
            raise KeyboardInterrupt
        return read_batch(sequence, *rank)

    session.feed.batches.at = at  # pyright: ignore[reportAttributeAccessIssue]


def test_rollbacks_are_bounded(small):
    session = start(watching(small, max_rollbacks=2), "small", silent)
    spoil(session, set(range(SPOILED, 60)))
    match = r"rolled back 2 times already, train\.max_rollbacks=2"
    with pytest.raises(NumericError, match=match) as refusal:
        train(session)
    assert refusal.value.exit_code == 5
    assert spikes(session)[-1]["done"] == "not rolled back again: train.max_rollbacks is reached"
    checkpoint.load(checkpoint_store.latest(session.run.checkpoints, silent))


def damage(session: Session, step: int) -> None:
    """Replace the weights of a checkpoint with zeros, once it is in its place."""
    file = session.run.checkpoints / f"step-{step:08d}" / "model.safetensors"
    deadline = time.monotonic() + SECONDS
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    file.write_bytes(bytes(file.stat().st_size))


def interfere(session: Session, at_batch: int, change: Callable[[], Any]) -> None:
    """Make reading a batch change something first."""
    read_batch = session.feed.batches.at

    def at(sequence: int, *rank: int) -> np.ndarray:
        if sequence == B * at_batch:
            change()
        return read_batch(sequence, *rank)

    session.feed.batches.at = at  # pyright: ignore[reportAttributeAccessIssue]


def test_a_damaged_checkpoint_is_passed_over_and_said_to_be(small):
    session = start(watching(small), "small", silent)
    spoil(session, {SPOILED})
    interfere(session, SPOILED, lambda: damage(session, 15))
    train(session)
    (event,) = spikes(session)
    assert event["done"].startswith(
        "rolled back to step 10, leaving out 32 sequences; passed over: "
    )
    assert "step-00000015: set aside as step-00000015.damaged" in event["done"]
    assert session.state.step == STEPS and session.state.sequences == B * (STEPS + 8)
    names = {path.name for path in session.run.checkpoints.iterdir()}
    assert {"step-00000015", "step-00000015.damaged"} <= names  # saved again on the way


def test_if_none_can_be_loaded_the_run_goes_on_with_its_own_weights(small):
    session = start(watching(small), "small", silent)
    spoil(session, {SPOILED})
    interfere(session, SPOILED, lambda: [damage(session, step) for step in (5, 10, 15)])
    train(session)
    done = spikes(session)[0]["done"]
    assert done.startswith("not rolled back: ") and "no intact checkpoint" in done
    assert (session.state.step, session.state.sequences) == (STEPS, B * STEPS)
    assert session.state.rollbacks == 0


def test_an_alarm_is_recorded_even_if_a_checkpoint_could_not_be_written(small, monkeypatch):
    def failing(folder: Path, *_: Any) -> None:
        raise StorageError(f"{folder}: full")

    monkeypatch.setattr(checkpoint, "write", failing)
    session = start(watching(small, checkpoint_every=17), "small", silent)
    spoil(session, {SPOILED})
    with pytest.raises(StorageError, match="full"):
        train(session)
    (event,) = spikes(session)
    assert event["done"] == "not rolled back: a checkpoint could not be written"


def test_without_an_earlier_checkpoint_the_run_says_so_and_goes_on(small):
    session = start(watching(small, checkpoint_every=0), "small", silent)
    spoil(session, {SPOILED})
    train(session)
    done = spikes(session)[0]["done"]
    assert done == "not rolled back: there is no checkpoint of step 17 or before"
    assert (session.state.step, session.state.sequences) == (STEPS, B * STEPS)


def test_a_rollback_across_a_phase_leaves_out_what_was_read_in_both(small):
    """The checkpoint is in the first phase and the spike in the second."""
    tokens = B * 32
    phases = ({"until": 16 * tokens}, {"until": STEPS * tokens, "weights": 3})
    session = start(watching(small, phases=phases), "small", silent)
    spoil_steps(session, {SPOILED})
    train(session)
    (event,) = spikes(session)
    assert event["done"].startswith("rolled back to step 15, leaving out 12 sequences")
    assert session.state.step == STEPS and session.state.sequences == B * (STEPS + 3)
    stretch = session.state.stretch
    assert stretch is not None and stretch.weights == (3.0,)
    assert sum(stretch.taken) == stretch.first == B * 19  # nothing is read twice or left out


def spoil_steps(session: Session, batches: set[int]) -> None:
    """Replace these batches with noise, whatever phase they are in."""
    next_step = session.course.next_step

    def spoiled(state: Any) -> Any:
        config, feed = next_step(state)
        if state.sequences // B not in batches:
            return config, feed
        noise = np.random.default_rng(1).integers(1, 257, (B, 33))
        return config, SimpleNamespace(at=lambda _: torch.from_numpy(noise), separator=0)

    session.course.next_step = spoiled  # pyright: ignore[reportAttributeAccessIssue]
