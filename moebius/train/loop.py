"""The training loop: steps, and what is due after each."""

from dataclasses import dataclass

import torch

from moebius.config import Config
from moebius.data import Batches, Corpus
from moebius.errors import Interrupted
from moebius.observe.terminal import Terminal
from moebius.train.actions import answer
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

    Raises NumericError on a loss that is not finite or for an alarm that stops; Interrupted, with the state saved, on SIGINT
    or SIGTERM.
    """
    config, state, corpus, device = session.config.train, session.state, session.corpus, session.device
    end_of_text = corpus.tokenizer.end_of_text if session.config.data.document_masking else None
    evaluation: Evaluation | None = None
    with StopSignals() as stop, StepLog(session.config, session.run, state, terminal, device) as log, terminal:
        while state.step < config.steps:
            log.go_on()
            tokens_BL = torch.from_numpy(session.batches.at(state.step)).to(device, non_blocking=True)
            result = train_step(state, tokens_BL, end_of_text, config)
            terminal.step(state.step)

            is_last = state.step == config.steps
            is_evaluated = (is_due(state.step, config.eval_every) or is_last) and not stop.requested
            if is_evaluated:
                log.pause()
                evaluation = evaluate(state.model, corpus, session.config, device)
            if is_evaluated or is_due(state.step, config.log_every):
                metrics = log.write(result, evaluation if is_evaluated else None)
                answer(state.alarms.look(metrics), state, session.run, log)
                log.check_finite(result)
            if is_due(state.step, config.checkpoint_every) or is_last or stop.requested:
                log.pause()
                log.check_finite(result)
                state.save(session.run.checkpoints)
            if stop.requested and not is_last:
                raise Interrupted(
                    f"stopped at step {state.step}, state saved; `moebius resume {session.run.root}`", stop.requested
                )
    return evaluation or evaluate(state.model, corpus, session.config, device)


def is_due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every`; 0 is never."""
    return every > 0 and step % every == 0
