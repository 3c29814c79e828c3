"""The training loop: each step, and the logging, evaluation and saving that is due after it."""

from moebius.errors import Interrupted
from moebius.observe.terminal import Terminal
from moebius.train.actions import answer
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.evaluate import Evaluation, evaluate
from moebius.train.log import StepLog
from moebius.train.session import Session
from moebius.train.signals import StopSignals
from moebius.train.step import train_step


def train(session: Session, terminal: Terminal) -> Evaluation:
    """Train to the configured step, evaluating, logging and saving on the way.

    Returns the last evaluation. Raises NumericError when too many updates in a row are not finite
    or an alarm stops the run; Interrupted, with the state saved, on a signal or when the terminal
    cannot be written to any more; StorageError when a checkpoint cannot be written.
    """
    config, state, feed = session.config.train, session.state, session.feed
    trained = (state.model, session.corpus, session.config, session.device)
    evaluation: Evaluation | None = None
    with (
        StopSignals(session.run.checkpoints) as stop,
        StepLog(session, terminal) as log,
        CheckpointWriter(
            session.run.checkpoints, config.keep_last, config.keep_every, session.process
        ) as writer,
    ):
        terminal.when_lost(stop.output_lost)
        while state.step < config.steps and not stop.requested:
            log.clock.go_on()
            result = train_step(state, feed.at(state.batch), feed.separator, config)
            log.note(result)

            latest: Evaluation | None = None
            evaluates = is_due(state.step, config.eval_every) or state.step == config.steps
            if evaluates:
                log.clock.pause()
                latest = evaluate(*trained, lambda: stop.requested is not None)
                evaluation = latest or evaluation
            if is_due(state.step, config.log_every) or evaluates:
                metrics = log.write(result, latest)
                answer(state.alarms.look(metrics), state, writer, log, config.max_rollbacks)
            if is_due(state.step, config.checkpoint_every):
                log.save(writer)
            terminal.step(state.step)
        stop.heeded()
        log.save(writer)
        writer.wait()
        if stop.requested:
            raise Interrupted(
                f"stopped at step {state.step}{stop.reason}, state saved; "
                f"`moebius resume {session.run.root}`",
                stop.requested,
            )
    last = evaluation or evaluate(*trained)
    assert last is not None  # this evaluation has no `stopped` function
    return last


def is_due(step: int, every: int) -> bool:
    """Return whether `step` is a multiple of `every`; an `every` of 0 means never."""
    return every > 0 and step % every == 0
