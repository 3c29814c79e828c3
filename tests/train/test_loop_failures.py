"""Two things go wrong in one run: both are reported, and the last good checkpoint is named."""

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from moebius.config.observe import Rule
from moebius.errors import DataError, NumericError, StorageError
from moebius.observe import json_lines
from moebius.observe.line_file import read_lines
from moebius.train import checkpoint, loop
from moebius.train.session import Session, resume
from tests.train.checkpoints import names_in
from tests.train.runs import before_step, new_session, silent, train, with_train

FULL = "could not be written: No space left on device"


@pytest.fixture
def fill_disk(monkeypatch) -> Callable[..., None]:
    """A function that makes the disk too full for the checkpoints of some steps."""
    write_tensors = checkpoint._write_tensors

    def fill(*steps: int) -> None:
        def failing(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
            if any(f"step-{step:08d}" in path.parent.name for step in steps):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write_tensors(path, tensors)

        monkeypatch.setattr(checkpoint, "_write_tensors", failing)

    return fill


def session_of(small: Any, **changes: Any) -> Session:
    """Return a session that saves every three steps."""
    return new_session(small, **({"checkpoint_every": 3, "eval_every": 0} | changes))


def poison(model: Any) -> None:
    model.layers[1].moe.router.weight_ED[0, 0] = torch.nan


def test_a_failed_save_and_weights_that_are_not_finite(small, fill_disk, monkeypatch):
    """The run ends at step 8 because of NaN; that step 6 was not saved is said as well."""
    fill_disk(6)
    session = session_of(small, max_skipped=1)
    session.state.model.embedding.weight.register_hook(
        lambda gradient: gradient * torch.nan if session.state.step >= 6 else gradient
    )
    with pytest.raises(
        NumericError, match="step 8: loss or gradient not finite 2 times"
    ) as raised:
        train(session)
    failure, good = raised.value.__notes__
    assert raised.value.exit_code == 5
    assert "step-00000006" in failure and FULL in failure
    assert good == "the last good checkpoint is step 3"
    assert resume(session.config, session.run, silent).state.step == 3


@pytest.mark.parametrize("is_sound", [True, False])
def test_a_failed_save_and_an_alarm_that_stops_the_run(small, fill_disk, monkeypatch, is_sound):
    """The alarm is recorded although the disk is full, and a state that is sound is saved."""
    fill_disk(6)
    rule = Rule(threshold=0, patience=7 if is_sound else 0, action="stop")
    sigmoid = replace(small.model, router_type="sigmoid", base_expansion=1.0)
    watched = {"cv": rule} if is_sound else {"router_logits": rule}
    small = replace(small, model=sigmoid, observe=replace(small.observe, **watched))
    session = session_of(small)
    if not is_sound:
        before_step(8, monkeypatch, poison)
    with pytest.raises(NumericError, match="alarm: layer") as raised:
        train(session)
    failure, good = raised.value.__notes__
    last = session.state.step if is_sound else 3
    assert "step-00000006" in failure and FULL in failure
    assert good == f"the last good checkpoint is step {last}"
    event = read_lines(session.run.events_path)[-1]
    assert FULL in event["done"] and good in event["done"]
    assert f"step-{last:08d}" in names_in(session.run.checkpoints)


def test_a_failed_save_and_a_signal(small, fill_disk, monkeypatch):
    """The run did not end as the signal asked, so its exit code is not that of the signal."""
    fill_disk(6)
    session = session_of(small)
    before_step(8, monkeypatch, lambda model: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StorageError, match=FULL) as raised:
        train(session)
    assert raised.value.exit_code == 6 and "step-00000006" in str(raised.value)
    assert raised.value.__notes__ == [
        "the last good checkpoint is step 8",
        "SIGTERM had asked the run to stop",
    ]
    assert resume(session.config, session.run, silent).state.step == 8


@pytest.mark.parametrize(
    "error", [DataError("a shard is gone"), KeyboardInterrupt(), OSError(5, "I/O error", "shard")]
)
def test_a_failed_save_and_an_error_in_an_evaluation(small, fill_disk, monkeypatch, error):
    fill_disk(6)
    session = session_of(small, eval_every=7)

    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "evaluate", failing)
    with pytest.raises(type(error)) as raised:
        train(session)
    failure, good = raised.value.__notes__
    assert "step-00000006" in failure and FULL in failure
    assert good == "the last good checkpoint is step 3"


def test_a_full_disk_at_the_last_save(small, fill_disk):
    fill_disk(12)
    session = session_of(small)
    with pytest.raises(StorageError, match=f"step-00000012: the checkpoint {FULL}") as raised:
        train(session)
    assert "the last good checkpoint is step 9" in raised.value.__notes__


def test_a_full_disk_from_the_first_save_on(small, fill_disk):
    fill_disk(3, 6)
    session = session_of(small)
    with pytest.raises(StorageError, match=f"step-00000006: the checkpoint {FULL}") as raised:
        train(session)
    failure, good = raised.value.__notes__
    assert "step-00000003" in failure and FULL in failure
    assert good == "there is no checkpoint yet"


def test_a_run_that_may_not_write_says_so(small, monkeypatch):
    """Permission is taken away after the first checkpoint."""
    session = session_of(small)
    mkdir = Path.mkdir

    def denied(path: Path, *arguments: Any, **settings: Any) -> None:
        if "step-00000006" in path.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        mkdir(path, *arguments, **settings)

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(StorageError, match=r"step-00000006: .*: Permission denied") as raised:
        train(session)
    assert raised.value.__notes__ == ["the last good checkpoint is step 9"]


def test_a_restart_after_both_goes_on_to_the_end(small, fill_disk, monkeypatch):
    fill_disk(6)
    session = session_of(small)
    with pytest.raises(StorageError):
        train(session)
    monkeypatch.undo()
    config = with_train(small, checkpoint_every=3, eval_every=0)
    resumed = resume(config, session.run, silent)
    assert resumed.state.step == 9
    train(resumed)
    assert [line["step"] for line in read_lines(session.run.metrics_path)] == list(range(1, 13))


@pytest.mark.parametrize("is_lasting", [True, False])
def test_metrics_that_cannot_be_written_end_the_run_with_its_state_saved(
    small, fill_disk, monkeypatch, is_lasting
):
    """Unless the disk is too full for that, too."""
    append, full = json_lines._append, os.strerror(errno.ENOSPC)

    def failing(file: TextIO, line: dict[str, Any]) -> None:
        if line["step"] == 8 and Path(file.name).name == "metrics.jsonl":
            file.write('{"step": 8, "tok')
            raise StorageError(f"{file.name}: {full}")
        append(file, line)

    session = session_of(small)
    with monkeypatch.context() as patched:
        patched.setattr(json_lines, "_append", failing)
        if is_lasting:
            fill_disk(8)
        with pytest.raises(StorageError, match=rf"metrics\.jsonl: {full}") as raised:
            train(session)
    good = 6 if is_lasting else 8
    assert raised.value.exit_code == 6
    assert raised.value.__notes__[-1] == f"the last good checkpoint is step {good}"
    monkeypatch.undo()
    resumed = resume(session.config, session.run, silent)
    assert resumed.state.step == good
    train(resumed)
    steps = [line["step"] for line in read_lines(session.run.metrics_path)]
    assert steps == [step for step in range(1, 13) if is_lasting or step != 8]


FULL_EVENTS = "events.jsonl: No space left on device"


@pytest.fixture
def no_room_for_events(monkeypatch) -> None:
    """Make the disk too full for every line of events.jsonl."""
    append = json_lines._append

    def failing(file: TextIO, line: dict[str, Any]) -> None:
        if Path(file.name).name == "events.jsonl":
            raise StorageError(FULL_EVENTS)
        append(file, line)

    monkeypatch.setattr(json_lines, "_append", failing)


@pytest.mark.usefixtures("no_room_for_events")
def test_an_alarm_that_stops_the_run_and_cannot_be_recorded(small, capsys):
    rule = Rule(threshold=0, patience=2, action="stop")
    session = session_of(replace(small, observe=replace(small.observe, cv=rule)))
    with pytest.raises(NumericError, match="step 2: alarm: layer 0: CV") as raised:
        train(session)
    assert raised.value.__notes__ == [FULL_EVENTS, "the last good checkpoint is step 2"]
    assert "step 2: alarm: layer 0: CV" in capsys.readouterr().out


@pytest.mark.usefixtures("no_room_for_events")
def test_a_last_roll_back_that_cannot_be_recorded(small, monkeypatch):
    rule = Rule(threshold=1.05, window=20, patience=0, action="roll_back")
    small = replace(small, observe=replace(small.observe, loss_spike=rule))
    session = session_of(small, max_rollbacks=0)
    before_step(8, monkeypatch, lambda model: model.lm_head.weight.mul_(50))
    with pytest.raises(NumericError, match="rolled back 0 times already") as raised:
        train(session)
    assert raised.value.__notes__[0] == FULL_EVENTS


@pytest.mark.usefixtures("no_room_for_events")
def test_too_many_skipped_steps_that_cannot_be_recorded(small, monkeypatch):
    session = session_of(small, max_skipped=2, log_every=4, checkpoint_every=0)
    before_step(2, monkeypatch, poison)
    with pytest.raises(NumericError, match="step 4: loss or gradient not finite 3 ") as raised:
        train(session)
    assert raised.value.__notes__[0] == FULL_EVENTS


@pytest.mark.parametrize("is_stopped", [True, False])
@pytest.mark.parametrize("is_skipped", [True, False])
def test_weights_that_are_not_finite_are_never_said_to_be_saved(
    small, monkeypatch, is_stopped, is_skipped
):
    """The run ends or is stopped, after a skipped step or right after an update that broke it."""
    session = session_of(small, steps=8)
    if is_skipped:
        before_step(8, monkeypatch, poison)
    else:
        train_step = loop.train_step

        def breaking(state: Any, *arguments: Any) -> Any:
            result = train_step(state, *arguments)
            with torch.no_grad():
                state.model.embedding.weight[0, 0] *= torch.inf if state.step == 8 else 1
            return result

        monkeypatch.setattr(loop, "train_step", breaking)
    if is_stopped:
        before_step(8, monkeypatch, lambda model: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(NumericError, match="step 8: not saved: weights are not fin") as raised:
        train(session)
    assert raised.value.exit_code == 5 and "state saved" not in str(raised.value)
    assert raised.value.__notes__ == [
        "the last good checkpoint is step 6",
        *["SIGTERM had asked the run to stop"] * is_stopped,
    ]
    assert resume(session.config, session.run, silent).state.step == 6
