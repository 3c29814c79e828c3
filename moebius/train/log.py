"""The log of a run, which sends the metrics and events of each step to every sink."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from moebius.config import Config
from moebius.config.printable import print_note
from moebius.errors import LostRunError, NumericError, StorageError
from moebius.hardware.memory import PeakMemory
from moebius.hardware.precision import matmul_dtype
from moebius.hardware.rates import matmul_ceiling
from moebius.observe.alarm import Alarm, together
from moebius.observe.metrics import StepMetrics
from moebius.observe.registry import sinks_for
from moebius.observe.sink import REWOUND_TO, Sample, Sinks
from moebius.observe.terminal import Terminal
from moebius.parallel.ranks import of_all
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.clock import Clock
from moebius.train.evaluate import Evaluation
from moebius.train.ownership import OwnedOnly
from moebius.train.session import Session
from moebius.train.skipped import SkippedSteps
from moebius.train.state import is_finite
from moebius.train.step import StepResult
from moebius.train.step_metrics import evaluated, step_metrics

LONGEST_DONE = 120
"""Characters of an action that the terminal shows."""


@dataclass(frozen=True)
class AnsweredAlarm:
    """The event of an alarm and of the action that was taken."""

    alarm: Alarm
    done: str
    """The action that was taken, in words; empty for an alarm that only warns."""
    rewound_to: int | None = None
    """The step that the run was rolled back to."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as an object for events.jsonl."""
        rewound = {} if self.rewound_to is None else {REWOUND_TO: self.rewound_to}
        return self.alarm.to_json() | {"done": self.done} | rewound

    def __str__(self) -> str:
        return f"{self.alarm}; {self.done}" if self.done else str(self.alarm)


def lines_of(answered: Sequence[AnsweredAlarm]) -> list[str]:
    """Return the lines for the terminal: one for all layers in which a rule fired at a step.

    A large model has thousands of experts. What was done in each layer is in events.jsonl.
    """
    lines: list[str] = []
    groups: dict[tuple[int, str, bool], list[AnsweredAlarm]] = {}
    for event in answered:
        alarm = event.alarm
        groups.setdefault((alarm.step, alarm.rule, alarm.over), []).append(event)
    for events in groups.values():
        line = together([event.alarm for event in events])
        done = list(dict.fromkeys(event.done for event in events if event.done))
        if done:
            text = done[0] if len(done[0]) <= LONGEST_DONE else f"{done[0][:LONGEST_DONE]}..."
            more = f" (and {len(done) - 1} more)" if len(done) > 1 else ""
            line += f"; {text}{more}"
        lines.append(line)
    return lines


class StepLog:
    """Writes metrics and events of a run. Use it as a context manager around the loop."""

    def __init__(self, session: Session, terminal: Terminal):
        self.session, self.state = session, session.state
        self.skipped = SkippedSteps(session.config.train, session.state)
        config, process = session.config, session.process
        owned = [OwnedOnly(session.check_owned)] if process.writes else []
        files = [*owned, *sinks_for(config.observe, process)]
        self.files, self.terminal = Sinks(files, session.run.root, session.state.step), terminal
        """The sinks but for the terminal. They are opened and closed as a part of `sinks`."""
        self.sinks = Sinks([*files, terminal], session.run.root, session.state.step)
        dtype = matmul_dtype(config.train, session.device)
        self.matmul_ceiling = matmul_ceiling(session.device, dtype)
        self.memory = PeakMemory(session.device)
        self.tokens = session.state.tokens

    def __enter__(self) -> "StepLog":
        self.sinks.__enter__()
        self.clock = Clock(self.session.device)
        return self

    def __exit__(self, *error: Any) -> None:
        self.sinks.__exit__(*error)

    def note(self, result: StepResult, config: Config | None = None) -> None:
        """Remember, on the device, whether the step was skipped.

        `config` has the step's batch size, if the run has phases.
        """
        self.skipped.note(result.is_skipped, config and config.train.batch_size)

    def write(
        self,
        result: StepResult,
        evaluation: Evaluation | None = None,
        config: Config | None = None,
    ) -> StepMetrics:
        """Write a step's metrics to every sink and return them. Waits for the device.

        `config` has the step's batch size and sequence length, if the run has phases. Raises
        NumericError as `settle` does.
        """
        times, sizes = zip(*of_all([self.clock.lap(), self.memory.bytes()]), strict=True)
        seconds = max(times)  # the ranks wait for the slowest of them
        self.settle()
        speed = (self.state.tokens - self.tokens) / max(seconds, 1e-9)
        self.tokens = self.state.tokens
        metrics = step_metrics(
            config or self.session.config,
            self.state,
            result,
            speed,
            self.matmul_ceiling,
            max(sizes),
            evaluation,
        )
        self.sinks.write(metrics)
        return metrics

    def complete(self, metrics: StepMetrics, evaluation: Evaluation) -> None:
        """Replace the metrics of the latest step, which lack its evaluation, in every sink."""
        self.sinks.rewind(metrics.step - 1)
        self.sinks.write(evaluated(metrics, evaluation))

    def sample(self, sample: Sample | None) -> None:
        """Write a text of the model, if there is one, to every sink.

        A run does not end because a text cannot be written, unless it is not this process's any
        more, which raises LostRunError.
        """
        try:
            if sample is not None:
                self.sinks.sample(sample)
        except LostRunError:
            raise
        except StorageError as error:
            print_note(f"the sample is not recorded: {error}")

    def event(self, alarm: Alarm, done: str, rewound_to: int | None = None) -> None:
        """Write an alarm, and the action that was taken, to every sink."""
        self.events([AnsweredAlarm(alarm, done, rewound_to)])

    def events(self, answered: Sequence[AnsweredAlarm]) -> None:
        """Write a step's alarms to every sink. The terminal gets one line for each rule.

        It gets them even if a file cannot be written, which raises StorageError.
        """
        try:
            for event in answered:
                self.files.event(event)
        finally:
            self.terminal.say(*lines_of(answered))

    def last_events(self, answered: Sequence[AnsweredAlarm], error: NumericError) -> NoReturn:
        """Write the alarms of the last step to every sink, and raise the error that ends the run.

        An alarm that cannot be written, as on a full disk, becomes a note on the error.
        """
        try:
            self.events(answered)
        except StorageError as failure:
            error.add_note(str(failure))
        raise error

    def settle(self) -> None:
        """Report the steps that were skipped since the last call. Waits for the device.

        Raises NumericError if more than train.max_skipped steps in a row were skipped.
        """
        self.skipped.settle(self.sinks.event)

    def save(self, writer: CheckpointWriter) -> bool:
        """Save the state, with the clock stopped, and return whether that was possible.

        Weights that are not finite are never saved, even if no step was skipped: it may be the
        latest update that broke them.
        """
        self.clock.pause()
        self.settle()
        is_sound = is_finite(self.state.model)
        if is_sound:
            writer.save(self.state)
            self.terminal.note(f"step {self.state.step}: checkpoint", "checkpoint")
        return is_sound

    def rewind(self) -> None:
        """Drop the metrics of the steps that will be trained again after a rollback."""
        self.sinks.rewind(self.state.step)
        self.tokens = self.state.tokens
        self.skipped.forget()
