"""The part that `moebius train` and `moebius resume` share: the loop, and the lines after it."""

import shlex
from typing import TYPE_CHECKING

from moebius.config.printable import printable
from moebius.config.resuming import changes
from moebius.errors import MoebiusError
from moebius.infer.training_sample import TrainingSamples
from moebius.observe.terminal import Terminal
from moebius.train import checkpoint, checkpoint_store
from moebius.train.loop import train, unevaluated_step
from moebius.train.resumption import check_steps, checkpoint_at, own_tokenizer
from moebius.train.trained_settings import check_belongs, settings_of

if TYPE_CHECKING:
    from moebius.config import Config
    from moebius.train.run_directory import RunDirectory
    from moebius.train.run_record import RunRecord
    from moebius.train.session import Session


def finished(
    directory: "RunDirectory", record: "RunRecord", config: "Config", step: int | None = None
) -> str | None:
    """Return a line about a run that has nothing left to train, or None if it has.

    record says what the run was trained with, and config is the configuration that it was given
    now; settings that differ are named, because they are not recorded. step is that of the
    checkpoint to continue from; None means the newest one. Nothing is written. Raises
    CheckpointError if there is no checkpoint of that step, and ConfigError if the run was given
    fewer steps than it has already made.
    """
    folders = checkpoint_store.complete(directory.checkpoints)
    folder = checkpoint_at(directory, step) if step is not None else next(iter(folders), None)
    at = checkpoint_store.step_of(folder) if folder else 0
    if folder is None or folder != folders[0]:
        return None
    try:
        tokens = int(checkpoint.read_state(folder).get("tokens", 0))
        if not config.train.is_over(at, tokens):
            return None
        values = checkpoint.verify(folder)
        check_belongs(folder, values, config, record.identity)
        own_tokenizer(config, directory, record)
    except MoebiusError:
        return None  # resuming says what is wrong
    trained = settings_of(values)
    if trained is None:
        return None  # an earlier version wrote it; resuming compares its weights with the model
    check_steps(record.config, config, at)
    if unevaluated_step(directory, at, tokens, config.train, trained.train):
        return None
    changed = changes(record.config, config)
    last = config.train.last_step(at, tokens)
    way = (
        "a further phase in its config.toml"
        if config.train.phases
        else "`--train.steps` with a larger number"
    )
    return (
        f"{directory.root} is finished: it is at step {at:,} of {last:,}; {way} trains it further"
        + (f"; not recorded: {', '.join(changed)}" if changed else "")
    )


def train_to_end(session: "Session") -> None:
    """Train to the last step; then print the validation loss, a sample and the run directory."""
    config, directory = session.config, session.run
    state = session.state
    last = config.train.last_step(state.step, state.tokens)
    terminal = Terminal(last, config.observe.progress, session.process, config.observe)
    # A model that is spread over processes cannot write a text in one of them.
    is_whole = session.process.writes and not state.placement.has_parts
    samples = TrainingSamples(session) if config.observe.sample_tokens and is_whole else None
    evaluation = train(session, terminal, sampler=samples)
    if not session.process.writes:
        return
    print("\n" + "\n".join(evaluation.lines()))
    if sample := samples and (samples.latest or samples()):
        lines = printable(sample.text).splitlines()
        print("\na sample:\n" + "\n".join(f"    {line}" for line in lines))
    run = shlex.quote(str(directory.root))
    print(printable(f"\nrun directory: {directory.root}"))
    more = f"moebius generate {run} --prompt {shlex.quote((samples and samples.prompt) or 'The ')}"
    print(printable(f"more text:     {more}"))
