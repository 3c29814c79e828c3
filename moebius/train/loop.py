"""The training loop: steps, and what is due after each."""

from dataclasses import dataclass

import torch

from moebius.config import Config
from moebius.data import Batches, Corpus
from moebius.errors import Interrupted
from moebius.observe.terminal import Terminal
from moebius.train.actions import answer
from moebius.train.checkpoint_writer import CheckpointWriter
from moebius.train.evaluate import Evaluation, evaluate
from moebius.train.log import StepLog
from moebius.train.run_directory import RunDirectory
from moebius.train.signals import StopSignals
from moebius.train.state import TrainState
from moebius.train.step import train_step


@dataclass(frozen=True)
class Session:
    """A run in memory: what `train` works on."""

    config: Config
    run: RunDirectory
    corpus: Corpus
    batches: Batches
    state: TrainState
    device: torch.device


def train(session: Session, terminal: Terminal) -> Evaluation:
    """Train to the configured step, evaluating, logging and saving on the way. Returns the last evaluation.

    Raises NumericError when too many updates in a row are not finite or an alarm stops the run; Interrupted, with the state
    saved, on SIGINT or SIGTERM; StorageError when a checkpoint cannot be written.
    """
    config, state, corpus, device = session.config.train, session.state, session.corpus, session.device
    end_of_text = corpus.tokenizer.end_of_text if session.config.data.document_masking else None
    evaluation: Evaluation | None = None
    with (
        StopSignals() as stop,
        StepLog(session.config, session.run, state, terminal, device) as log,
        CheckpointWriter(session.run.checkpoints, config.keep_last, config.keep_every) as writer,
        terminal,
    ):
        while state.step < config.steps and not stop.requested:
            log.go_on()
            tokens_BL = torch.from_numpy(session.batches.at(state.batch)).to(device, non_blocking=True)
            result = train_step(state, tokens_BL, end_of_text, config)
            log.note(result)

            measured: Evaluation | None = None
            if evaluates := is_due(state.step, config.eval_every) or state.step == config.steps:
                log.pause()
                measured = evaluate(state.model, corpus, session.config, device, lambda: stop.requested is not None)
                evaluation = measured or evaluation
            if is_due(state.step, config.log_every) or evaluates:
                metrics = log.write(result, measured)
                answer(state.alarms.look(metrics), state, writer, log, config.max_rollbacks)
            if is_due(state.step, config.checkpoint_every):
                log.save(writer)
            terminal.step(state.step)
        stop.heeded()
        log.save(writer)
        writer.wait()
        if stop.requested:
            raise Interrupted(f"stopped at step {state.step}, state saved; `moebius resume {session.run.root}`", stop.requested)
    last = evaluation or evaluate(state.model, corpus, session.config, device)
    assert last is not None  # nothing stops this one
    return last


def is_due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every`; 0 is never."""
    return every > 0 and step % every == 0
