"""Going back to before a loss spike, and on without the batches that led to it (PaLM's cure, arXiv 2204.02311, section 5.1)."""

from moebius.errors import CheckpointError, NumericError
from moebius.observe.alarms import Alarm
from moebius.train import checkpoint
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.log import StepLog
from moebius.train.state import TrainState


def roll_back(alarm: Alarm, state: TrainState, writer: CheckpointWriter, log: StepLog, max_rollbacks: int) -> None:
    """Back to the newest intact checkpoint from before the alarm's cause, but on with the batches after it."""
    writer.wait()
    passed_over: list[str] = []
    try:
        folder = checkpoint.latest(writer.checkpoints, passed_over.append, up_to=alarm.since)
    except CheckpointError:
        return log.event(alarm, f"not rolled back: there is no checkpoint of step {alarm.since} or before")
    if state.rollbacks >= max_rollbacks:
        log.event(alarm, "not rolled back once more")
        raise NumericError(f"{alarm}; rolled back {state.rollbacks} times already, train.max_rollbacks={max_rollbacks}")
    batch, rollbacks = state.batch, state.rollbacks
    state.load(folder)
    left_out = batch - state.batch
    state.batch, state.rollbacks = batch, rollbacks + 1
    checkpoint.discard_after(writer.checkpoints, state.step)
    log.rewind()
    log.event(alarm, f"rolled back to step {state.step}, leaving out {left_out} batches")
