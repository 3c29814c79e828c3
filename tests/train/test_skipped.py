"""Skipped updates: collected on the device, reported with their batches, counted in a row."""

import json
from typing import Any

import pytest
import torch

from moebius.config import TrainConfig
from moebius.errors import NumericError, StorageError
from moebius.train.skipped import SkippedStep, SkippedSteps
from moebius.train.state import TrainState

TRAIN = TrainConfig(batch_size=4, max_skipped=2)


def state_at(step: int, left_out: int = 0, skipped: int = 0) -> TrainState:
    """Return a state without a model, after roll-backs that left out a number of sequences."""
    nothing: Any = None
    sequences = step * TRAIN.batch_size + left_out
    return TrainState(nothing, [], nothing, [], step=step, sequences=sequences, skipped=skipped)


def note_steps(steps: SkippedSteps, state: TrainState, *is_skipped: bool) -> None:
    """Make steps, of which some are skipped."""
    for flag in is_skipped:
        state.step += 1
        state.sequences += TRAIN.batch_size
        steps.note(torch.tensor(flag))


def settled(steps: SkippedSteps) -> list[SkippedStep]:
    """Return what is reported about the steps since the last call."""
    events: list[SkippedStep] = []
    steps.settle(events.append)
    return events


def test_each_skipped_step_is_an_event_with_its_sequences():
    state = state_at(step=10, left_out=12)
    steps = SkippedSteps(TRAIN, state)
    note_steps(steps, state, False, True, True, False, True)
    assert settled(steps) == [
        SkippedStep(step=12, first_sequence=56, last_sequence=59, in_a_row=1),
        SkippedStep(step=13, first_sequence=60, last_sequence=63, in_a_row=2),
        SkippedStep(step=15, first_sequence=68, last_sequence=71, in_a_row=1),
    ]
    assert state.skipped == 1
    assert settled(steps) == []


def test_steps_in_a_row_are_counted_across_reports_and_end_with_a_good_one():
    state = state_at(step=3)
    steps = SkippedSteps(TRAIN, state)
    note_steps(steps, state, True)
    assert [event.in_a_row for event in settled(steps)] == [1]
    note_steps(steps, state, True)
    assert [event.in_a_row for event in settled(steps)] == [2]
    note_steps(steps, state, False)
    assert settled(steps) == [] and state.skipped == 0


def test_noting_a_step_does_not_ask_the_device():
    """Reading the tensor would raise an error, because it is on the meta device."""
    state = state_at(step=1)
    SkippedSteps(TRAIN, state).note(torch.empty((), dtype=torch.bool, device="meta"))


def test_more_steps_in_a_row_than_allowed_end_the_run():
    state = state_at(step=0)
    steps = SkippedSteps(TRAIN, state)
    note_steps(steps, state, True, True)
    settled(steps)
    note_steps(steps, state, True)
    events: list[SkippedStep] = []
    with pytest.raises(
        NumericError,
        match="step 3: loss or gradient not finite 3 times in a row; lower",
    ) as refusal:
        steps.settle(events.append)
    assert [event.step for event in events] == [3]  # what ends the run is reported first
    assert refusal.value.exit_code == 5 and "\n" not in str(refusal.value)


def test_forgotten_steps_are_not_reported():
    state = state_at(step=0)
    steps = SkippedSteps(TRAIN, state)
    note_steps(steps, state, True, True, True)
    steps.forget()
    assert settled(steps) == [] and state.skipped == 0


def test_an_event_in_json_and_as_a_line():
    event = SkippedStep(step=812, first_sequence=3260, last_sequence=3263, in_a_row=2)
    assert json.loads(json.dumps(event.to_json())) == {
        "event": "skipped",
        "step": 812,
        "sequences": [3260, 3263],
        "in_a_row": 2,
    }
    assert str(event) == (
        "step 812: loss or gradient not finite; the update was skipped (sequences 3,260 to 3,263)"
    )


def full_disk(event: SkippedStep) -> None:
    raise StorageError(f"events.jsonl: no space left at step {event.step}")


def test_a_report_that_fails_does_not_hide_what_ends_the_run():
    state = state_at(step=0)
    steps = SkippedSteps(TRAIN, state)
    note_steps(steps, state, True, True, True)
    with pytest.raises(NumericError, match="step 3: loss or gradient not finite 3") as refusal:
        steps.settle(full_disk)
    assert refusal.value.__notes__ == ["events.jsonl: no space left at step 1"]


def test_a_report_that_fails_is_an_error_of_its_own_otherwise():
    state = state_at(step=0)
    steps = SkippedSteps(TRAIN, state)
    note_steps(steps, state, True, False)
    with pytest.raises(StorageError, match="no space left at step 1"):
        steps.settle(full_disk)
    assert state.skipped == 0  # the later steps count all the same


def test_the_sequences_of_a_step_are_those_of_its_own_batch_size():
    state = state_at(step=10)
    steps = SkippedSteps(TRAIN, state)
    for batch_size in (2, 6):
        state.step, state.sequences = state.step + 1, state.sequences + batch_size
        steps.note(torch.tensor(True), batch_size)
    assert settled(steps) == [
        SkippedStep(step=11, first_sequence=40, last_sequence=41, in_a_row=1),
        SkippedStep(step=12, first_sequence=42, last_sequence=47, in_a_row=2),
    ]
