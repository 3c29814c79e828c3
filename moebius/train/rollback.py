"""Return to a checkpoint before a loss spike, and continue without the sequences that led to it.

PaLM was trained this way (Chowdhery et al. 2022, arXiv 2204.02311, section 5.1).
"""

from moebius.errors import CheckpointError, NumericError, StorageError
from moebius.observe.alarm import Alarm
from moebius.parallel.ranks import from_first, has_peers
from moebius.train import checkpoint_store
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.log import AnsweredAlarm, StepLog
from moebius.train.resumption import Resumed
from moebius.train.state import Content, TrainState
from moebius.train.trained_settings import settings_at


def roll_back(
    alarm: Alarm, state: TrainState, writer: CheckpointWriter, log: StepLog, max_rollbacks: int
) -> None:
    """Load the newest intact checkpoint from before the alarm's cause, and skip the text since.

    Without such a checkpoint, the run continues as it is. If the settings have changed since that
    checkpoint, the event says so. Raises NumericError if the run has already been rolled back
    max_rollbacks times, and StorageError if a checkpoint could not be written.
    """
    try:
        writer.wait()
    except StorageError:
        log.event(alarm, "not rolled back: a checkpoint could not be written")
        raise
    if not from_first(_has_checkpoint(writer, alarm.since)):
        done = f"not rolled back: there is no checkpoint of step {alarm.since} or before"
        return log.event(alarm, done)
    if state.rollbacks >= max_rollbacks:
        error = NumericError(
            f"{alarm}; rolled back {state.rollbacks} times already, "
            f"train.max_rollbacks={max_rollbacks}"
        )
        done = "not rolled back again: train.max_rollbacks is reached"
        log.last_events([AnsweredAlarm(alarm, done)], error)
    sequences, stretch, rollbacks = state.sequences, state.stretch, state.rollbacks
    lines: list[str] = []  # about the checkpoints that are passed over
    contents: list[Content] = []
    failure = ""
    if writer.writes or not has_peers():  # the others get it from the first process
        try:
            checkpoint_store.load_newest(
                writer.checkpoints,
                lambda folder: contents.append(state.read(folder)),
                lines.append,
                alarm.since,
                set_aside=writer.writes,
            )
        except CheckpointError as error:
            failure = str(error)
    if failure := from_first(failure):
        return log.event(alarm, f"not rolled back: {failure}")
    state.take(contents.pop() if contents else None)
    before = settings_at(log.session.run, state.trained, state.config, state.step)
    changed = Resumed.of(state.step, state.tokens, before, state.config)
    num_skipped = sequences - state.sequences
    # The text goes on where it was, also if it was in a later phase than the checkpoint is.
    state.sequences, state.stretch, state.rollbacks = sequences, stretch, rollbacks + 1
    if writer.writes:
        checkpoint_store.discard_after(writer.checkpoints, state.step)
    log.rewind()
    done = f"rolled back to step {state.step}, leaving out {num_skipped:,} sequences"
    lines += changed.lines() if changed else []
    log.event(alarm, "; ".join([done, *lines]), rewound_to=state.step)
    if changed:
        log.sinks.event(changed)
    writer.save(state)  # so that a resumed run leaves them out, too


def _has_checkpoint(writer: CheckpointWriter, step: int) -> bool:
    """Return whether the run has a checkpoint of that step or before."""
    folders = checkpoint_store.complete(writer.checkpoints)
    return any(checkpoint_store.step_of(folder) <= step for folder in folders)
