"""The training loop: each step, and the logging, evaluation and saving that is due after it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from moebius.config import Config, TrainConfig
from moebius.errors import (
    Interrupted,
    LostRunError,
    MoebiusError,
    NumericError,
    StorageError,
)
from moebius.observe.json_lines import last_metrics
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Sample
from moebius.observe.terminal import Terminal
from moebius.parallel.ranks import from_first, has_peers
from moebius.train.actions import answer
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.common_start import has_equal_experts
from moebius.train.evaluate import Evaluation, evaluate
from moebius.train.graphs import GraphedPasses
from moebius.train.log import StepLog
from moebius.train.run_directory import RunDirectory
from moebius.train.schedule import learning_rate
from moebius.train.session import Session
from moebius.train.signals import StopSignals
from moebius.train.step import StepResult, train_step

Sampler = Callable[[Callable[[], bool]], Sample | None]
"""Function that lets the model write a text. It gets a function that says whether to stop, and
returns None if it has."""


def train(
    session: Session, terminal: Terminal, listens: bool = True, sampler: Sampler | None = None
) -> Evaluation:
    """Train to the configured step, evaluating, logging and saving on the way.

    Without `listens`, signals are left to the caller: the run is not worth saving. With
    `sampler`, the model writes a text after each evaluation.

    Returns the last evaluation. Raises NumericError when too many updates in a row are not finite,
    an alarm stops the run, or the weights that it ends with are not finite; Interrupted, with the
    state saved, on a signal or when the terminal cannot be written to any more; StorageError when
    a checkpoint cannot be written.
    """
    config, state = session.config.train, session.state
    trained = (state.model, session.corpus, session.config, session.device)
    speaks = session.process.writes
    with (
        StopSignals(session.run.checkpoints, listens=listens, speaks=speaks) as stop,
        StepLog(session, terminal) as log,
        writer_for(session) as writer,
    ):
        terminal.when_lost(stop.output_lost)
        session.begin(log.sinks.event)
        passes = GraphedPasses(session.config, session.device, terminal.say, session.process)

        def stops() -> bool:
            is_stopping = stop.agree()
            session.peers.beat()
            return is_stopping

        def is_stopped() -> bool:  # of the first process alone
            return stop.requested is not None

        evaluation = _made_up(session, log, stops)
        if evaluation:
            log.sample(sampler and sampler(is_stopped))
        while not config.is_over(state.step, state.tokens) and not stops():
            log.clock.go_on()
            result, current = take_step(session, passes)
            log.note(result, current)
            latest: Evaluation | None = None
            evaluates = is_evaluated(state.step, state.tokens, config)
            if evaluates:
                log.clock.pause()
                latest = evaluate(*trained, stops)
                evaluation = latest or evaluation
            if is_due(state.step, config.log_every) or evaluates:
                with saved_on_failure(log, writer):
                    metrics = log.write(result, latest, current)
                if latest and sampler:
                    log.sample(sampler(is_stopped))
                alarms = state.alarms.look(metrics, has_equal_experts(state.step - 1, config))
                answer(alarms, state, writer, log, config.max_rollbacks)
            if is_due(state.step, config.checkpoint_every):
                log.save(writer)
            terminal.step(state.step)
        save_last(session, stop, log, writer)
    last = evaluation or evaluate(*trained)
    assert last is not None  # this evaluation has no `stopped` function
    return last


def save_last(session: Session, stop: StopSignals, log: StepLog, writer: CheckpointWriter) -> None:
    """Save the state that the run ends with. Raises NumericError and Interrupted as `train`."""
    stop.heeded()
    session.peers.rest()
    is_saved = log.save(writer)
    writer.wait()
    if not is_saved:  # the writer adds to this line which checkpoint is the last good one
        raise NumericError(
            f"step {session.state.step}: not saved: weights are not finite; lower --train.lr, or "
            "lengthen --train.warmup_steps"
        )
    if stop.agree():
        assert stop.requested is not None
        raise Interrupted(
            f"stopped at step {session.state.step}{stop.reason}, state saved; "
            f"`moebius resume {session.run.root}`",
            stop.requested,
        )


def _made_up(session: Session, log: StepLog, stops: Callable[[], bool]) -> Evaluation | None:
    """Return the evaluation that a signal prevented before the run was resumed, if there is one.

    It is None, too, if that is prevented again.
    """
    state, config = session.state, session.config
    at = state.step, state.tokens
    metrics = None
    if session.process.writes:
        metrics = unevaluated_step(session.run, *at, config.train, session.trained)
    if not from_first(metrics is not None):
        return None
    evaluation = evaluate(state.model, session.corpus, config, session.device, stops)
    if evaluation and metrics:
        log.complete(metrics, evaluation)
    return evaluation


def take_step(session: Session, passes: GraphedPasses | None = None) -> tuple[StepResult, Config]:
    """Train one step. Return its result, and the plain configuration of its phase."""
    state, config = session.state, session.config.train
    current, feed = session.course.next_step(state)
    lr = learning_rate(state.step, config, state.tokens)
    if session.process.world_size > 1:
        # A generator for each rank and step, so that no two ranks drop the same activations. Their
        # states are then not a part of the checkpoint, whose content is that of one process.
        torch.manual_seed(hash((config.seed, state.step, session.process.rank)) % 2**63)
    tokens_BL = feed.at(state.sequences)
    return train_step(state, tokens_BL, feed.separator, current.train, lr, passes), current


@contextmanager
def saved_on_failure(log: StepLog, writer: CheckpointWriter) -> Iterator[None]:
    """Save the state if the log of its step cannot be written, which ends the run.

    One of several processes cannot save alone, and the others do not know of its log.
    That line is then missing in metrics.jsonl, but no step has to be trained again. The error says
    which checkpoint is the last good one, as `CheckpointWriter` does for each error.
    """
    try:
        yield
    except LostRunError:
        raise
    except StorageError:
        if not has_peers():
            with suppress(MoebiusError):
                log.save(writer)
        raise


def writer_for(session: Session) -> CheckpointWriter:
    """Return the writer of a run's checkpoints."""
    config = session.config.train
    writer = CheckpointWriter(
        session.run.checkpoints,
        config.keep_last,
        config.keep_every,
        session.process,
        session.check_owned,
    )
    if session.is_saved:
        writer.has(session.state)
    return writer


def unevaluated_step(
    run: RunDirectory, step: int, tokens: int, config: TrainConfig, trained: TrainConfig
) -> StepMetrics | None:
    """Return the metrics of a run's latest step if a signal prevented its evaluation, else None.

    Whether the step was to be evaluated follows from `trained`, the settings that it was trained
    with. With `config`, those that the run goes on with, it may have become the last step, which
    is always evaluated. Raises StorageError.
    """
    is_last = config.is_over(step, tokens)
    if not (is_evaluated(step, tokens, trained) or is_last) or not run.metrics_path.exists():
        return None
    try:
        last = last_metrics(run.metrics_path)
    except OSError as error:
        raise StorageError(f"{run.metrics_path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):  # a line that was written by another version
        return None
    return last if last and last.step == step and last.val_loss is None else None


def is_evaluated(step: int, tokens: int, config: TrainConfig) -> bool:
    """Return whether a step is followed by an evaluation. The last step of a run always is.

    `tokens` is the number of tokens that the run has trained on after the step.
    """
    return step > 0 and (is_due(step, config.eval_every) or config.is_over(step, tokens))


def is_due(step: int, every: int) -> bool:
    """Return whether `step` is a multiple of `every`; an `every` of 0 means never."""
    return every > 0 and step % every == 0
