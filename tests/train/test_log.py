"""The log of a run: metrics and events reach every sink, and only training time counts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moebius.config.observe import Action
from moebius.cost.counts import training_flops_per_token
from moebius.errors import NumericError
from moebius.observe.alarm import Alarm
from moebius.observe.line_file import read_lines
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Event
from moebius.observe.terminal import Terminal
from moebius.parallel.group import Peers
from moebius.parallel.process import Process
from moebius.train import clock, log, loop
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.evaluate import Evaluation
from moebius.train.log import AnsweredAlarm, StepLog
from moebius.train.session import Session, start
from moebius.train.step import StepResult, train_step
from tests.observe.made_up import metrics_of
from tests.train.runs import new_session, silent, train, with_train
from tests.train.test_clock import Time

TOKENS = 4 * 32
"""Number of tokens in a batch of the `small` configuration."""


def alarm_of(action: Action, over: bool = False) -> Alarm:
    return Alarm(8, "cv", 2, (), 0.75, 0.3, 5, action, over, metrics_of(step=8))


def log_of(session: Session, process: Process | None = None) -> StepLog:
    """Return the session's log, with a terminal that shows lines instead of a bar."""
    return StepLog(session, Terminal(session.config.train.steps, progress=False, process=process))


def take_step(session: Session) -> StepResult:
    state, feed = session.state, session.feed
    return train_step(state, feed.at(state.sequences), feed.separator, session.config.train)


def skipped_result(session: Session) -> StepResult:
    """Make a step, and return its result as if its update had been skipped."""
    return take_step(session)._replace(is_skipped=torch.tensor(True))


# alarms and actions


def test_a_step_has_one_line_for_each_rule_and_an_event_for_each_layer(small, capsys):
    session = new_session(small)
    alarms = [
        replace(alarm_of("raise_aux"), layer=layer % 3, over=layer > 5) for layer in range(9)
    ]
    answered = [
        AnsweredAlarm(alarm, f"done {number % 2}" if number < 4 else "x" * 500)
        for number, alarm in enumerate(alarms)
    ]
    with log_of(session) as step_log:
        step_log.events(answered)
    assert read_lines(session.run.events_path) == [event.to_json() for event in answered]
    fired, over = capsys.readouterr().out.splitlines()
    assert fired.startswith("step 8: alarm: 6 layers") and over.startswith("step 8: over: layers ")
    assert fired.endswith("; done 0 (and 2 more)") and over.endswith(f"; {'x' * 120}...")


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("done", ["", "state saved"])
def test_an_answered_alarm_is_the_alarms_json_and_what_was_done(over, done):
    alarm = alarm_of("raise_aux", over)
    line = AnsweredAlarm(alarm, done).to_json()
    assert line == alarm.to_json() | {"done": done}
    assert list(line) == [*alarm.to_json(), "done"]
    assert json.loads(json.dumps(line)) == line


def test_the_line_of_an_answered_alarm_ends_with_what_was_done():
    alarm = alarm_of("stop")
    assert str(AnsweredAlarm(alarm, "state saved")) == f"{alarm}; state saved"
    assert str(AnsweredAlarm(alarm, "")) == str(alarm)


def test_an_event_is_in_the_file_and_on_the_terminal(small, capsys):
    session = new_session(small)
    with log_of(session) as step_log:
        step_log.event(alarm_of("nudge_bias"), "choice shifted")
    assert read_lines(session.run.events_path) == [
        alarm_of("nudge_bias").to_json() | {"done": "choice shifted"}
    ]
    assert capsys.readouterr().out == f"{alarm_of('nudge_bias')}; choice shifted\n"


# metrics


def test_a_written_step_is_returned_and_reaches_every_sink(small, capsys):
    session = new_session(small)
    with log_of(session) as step_log:
        result = take_step(session)
        step_log.note(result)
        metrics = step_log.write(result, Evaluation(3.0, 1.5, tokens=100))
    (line,) = read_lines(session.run.metrics_path)
    assert line == metrics.to_json()
    assert (metrics.step, metrics.tokens, metrics.val_loss) == (1, TOKENS, 3.0)
    assert metrics.loss == result.loss.item() and metrics.memory_gb > 0
    shown = capsys.readouterr().out
    assert shown.startswith("step 1/12  loss ") and "val 3.000 (1.500 bpb)" in shown
    assert len(list((session.run.root / "tb").iterdir())) == 1


def test_a_process_that_does_not_write_has_only_a_silent_terminal(small, capsys):
    session = start(small, "small", silent, peers=Peers(Process(rank=1, world_size=2)))
    with log_of(session, session.process) as step_log:
        assert [type(sink) for sink in step_log.sinks._sinks] == [Terminal]
        result = take_step(session)
        step_log.note(result)
        metrics = step_log.write(result)
        step_log.event(alarm_of("warn"), "")
        step_log.rewind()
    assert metrics.step == 1  # its alarms see what those of the other processes see
    assert capsys.readouterr().out == ""
    assert not session.run.root.exists()


def test_a_sink_of_ones_own_sees_a_whole_run(small, monkeypatch):
    class Losses:
        """A sink that keeps the losses in a list."""

        def __init__(self) -> None:
            self.losses: list[float] = []
            self.calls: list[str] = []

        def open(self, run: Path, step: int) -> None:
            self.calls.append(f"open {run.name} at {step}")

        def write(self, metrics: StepMetrics) -> None:
            self.losses.append(metrics.loss)

        def event(self, event: Event) -> None:
            self.calls.append(str(event))

        def rewind(self, step: int) -> None:
            self.calls.append(f"rewind to {step}")

        def close(self) -> None:
            self.calls.append("close")

    own, sinks_for = Losses(), log.sinks_for
    monkeypatch.setattr(log, "sinks_for", lambda *arguments: [*sinks_for(*arguments), own])
    session = new_session(small, steps=3)
    train(session)
    assert own.losses == [line["loss"] for line in read_lines(session.run.metrics_path)]
    assert len(own.losses) == 3
    assert own.calls == ["open run at 0", "close"]


def test_after_a_roll_back_the_metrics_of_later_steps_are_gone_and_events_stay(small):
    session = new_session(small)
    with log_of(session) as step_log:
        for _ in range(4):
            step_log.write(take_step(session))
        step_log.note(skipped_result(session))
        step_log.event(alarm_of("roll_back"), "rolled back")
        session.state.step, session.state.tokens = 2, 2 * TOKENS
        step_log.rewind()
        assert step_log.tokens == 2 * TOKENS
        step_log.settle()  # reports nothing
    assert [line["step"] for line in read_lines(session.run.metrics_path)] == [1, 2]
    assert [line["step"] for line in read_lines(session.run.events_path)] == [8]


# time


def test_evaluations_and_checkpoints_are_not_counted(small, monkeypatch):
    """A step takes 2 s, an evaluation 100 s, a checkpoint 1000 s, and everything else no time."""
    time = Time()
    monkeypatch.setattr(clock, "time", time)

    def takes(seconds: float, call: Any) -> Any:
        def slowed(*arguments: Any) -> Any:
            time.passes(seconds)
            return call(*arguments)

        return slowed

    monkeypatch.setattr(loop, "train_step", takes(2.0, loop.train_step))
    monkeypatch.setattr(loop, "evaluate", takes(100.0, loop.evaluate))
    monkeypatch.setattr(CheckpointWriter, "save", takes(1000.0, CheckpointWriter.save))
    session = new_session(small, log_every=3, eval_every=5, checkpoint_every=4)
    train(session)
    lines = read_lines(session.run.metrics_path)
    assert [line["step"] for line in lines] == [3, 5, 6, 9, 10, 12]
    speeds = [line["tokens_per_second"] for line in lines]
    assert speeds == pytest.approx([TOKENS / 2.0] * len(lines))
    # The FLOPs of the steps differ, as the load of the experts does; the ceiling does not.
    assert all(line["mfu"] > 0 for line in lines)


def test_mfu_is_the_share_of_the_measured_rate(small, monkeypatch):
    monkeypatch.setattr(log, "matmul_ceiling", lambda device, dtype: 1e9)
    session = new_session(small)
    with log_of(session) as step_log:
        metrics = step_log.write(take_step(session))
    used = [sum(layer.tokens_per_expert) / TOKENS for layer in metrics.layers]
    flops = training_flops_per_token(small.model, small.train.seq_len, used)
    assert metrics.mfu == pytest.approx(metrics.tokens_per_second * flops / 1e9)


# updates that were skipped


def test_skipped_steps_are_reported_when_a_step_is_written(small, capsys):
    session = new_session(small)
    with log_of(session) as step_log:
        step_log.note(skipped_result(session))
        step_log.note(take_step(session))
        assert read_lines(session.run.events_path) == []
        step_log.write(take_step(session))
    (event,) = read_lines(session.run.events_path)
    assert (event["event"], event["step"], event["sequences"]) == ("skipped", 1, [0, 3])
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "step 1: loss or gradient not finite; the update was skipped (sequences 0"
    )


def test_too_many_skipped_steps_end_the_run_once_all_are_reported(small):
    session = new_session(small, max_skipped=1)
    with log_of(session) as step_log:
        for _ in range(3):
            step_log.note(skipped_result(session))
        with pytest.raises(NumericError, match="3 times in a row"):
            step_log.settle()
    events = read_lines(session.run.events_path)
    assert [(event["step"], event["in_a_row"]) for event in events] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("is_finite", [True, False])
def test_weights_that_are_not_finite_are_not_saved(small, is_finite):
    session = new_session(with_train(small, max_skipped=100))
    with (
        log_of(session) as step_log,
        CheckpointWriter(session.run.checkpoints, keep_last=1, keep_every=0) as writer,
    ):
        step_log.note(skipped_result(session))
        if not is_finite:
            with torch.no_grad():
                session.state.model.lm_head.weight[0, 0] = torch.nan
        step_log.save(writer)
    assert session.run.checkpoints.exists() == is_finite
