"""Turn a configuration into a session that is ready to train, new or resumed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from moebius.config import Config
from moebius.data import Batches, Corpus, Feed, check_evaluable, prepare
from moebius.errors import ConfigError
from moebius.hardware.backends import backends_for
from moebius.hardware.device import choose_device
from moebius.hardware.threads import use_threads
from moebius.model.transformer import lookahead, seeded
from moebius.parallel.layout import lay_out
from moebius.parallel.process import Process
from moebius.train.checkpoint_store import complete, latest, tidy
from moebius.train.common_start import tie_experts
from moebius.train.run_directory import RunDirectory
from moebius.train.state import TrainState
from moebius.train.summary import summary

Say = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """A run in memory: everything that the training loop works on."""

    config: Config
    run: RunDirectory
    corpus: Corpus
    feed: Feed
    """The training batches, on their way to the device."""
    state: TrainState
    process: Process

    @property
    def device(self) -> torch.device:
        """The device that this process trains on."""
        return self.feed.device


def start(
    config: Config, source: str, say: Say, progress: bool = False, process: Process | None = None
) -> Session:
    """Return the session of a new run.

    source is the preset or file that the configuration came from; an unnamed run is named after
    it. say takes the lines of the summary. The run's directory is created last, so that a run that
    cannot begin leaves no directory. Without `process`, the environment says which one this is.
    """
    process = process or Process.from_environment()
    device = choose_device(config.train.device)
    run = RunDirectory.plan(config, source)
    corpus = prepare(config.data, config.model.vocab_size, report=say, progress=progress)
    feed = feed_for(config, corpus, device, process)
    if process.writes:
        run.create(config, corpus.tokenizer)
    state = build(config, corpus, device, say)
    return Session(config, run, corpus, feed, state, process)


def resume(
    config: Config,
    run: RunDirectory,
    say: Say,
    progress: bool = False,
    process: Process | None = None,
) -> Session:
    """Return the session of a run that continues from its newest intact checkpoint.

    A run that was stopped before its first checkpoint starts over. say and process are those of
    `start`. Raises ConfigError if the run's text has changed.
    """
    process = process or Process.from_environment()
    device = choose_device(config.train.device)
    if process.writes:
        tidy(run.checkpoints)
    folder = latest(run.checkpoints, say) if complete(run.checkpoints) else None
    corpus = prepare(config.data, config.model.vocab_size, report=say, progress=progress)
    if corpus.tokenizer.to_json() != run.tokenizer().to_json():
        raise ConfigError(
            f"{run.root}: data.source={config.data.source!r} gives another tokenizer than the "
            "run's: its text has changed"
        )
    state = build(config, corpus, device, say)
    if folder is not None:
        state.load(folder)
    say(f"resuming {run.root} at step {state.step:,} of {config.train.steps:,}")
    feed = feed_for(config, corpus, device, process)
    return Session(config, run, corpus, feed, state, process)


def feed_for(
    config: Config, corpus: Corpus, device: torch.device, process: Process | None = None
) -> Feed:
    """Return the training text as batches on their way to a process's device.

    Raises DataError if the training text is too short for one batch, or the held-out text too
    short to be evaluated.
    """
    process = process or Process()
    batches = batches_for(config, corpus)
    return Feed(batches, device, corpus.separator, process.rank, process.world_size)


def batches_for(config: Config, corpus: Corpus) -> Batches:
    """Return the global batches of the training text. Raises DataError as `feed_for` does."""
    train = config.train
    check_evaluable(corpus.val, lookahead(config.model))
    ahead = lookahead(config.model)
    return Batches(corpus.train, train.seq_len, train.batch_size, train.seed, ahead)


def build(config: Config, corpus: Corpus, device: torch.device, say: Say) -> TrainState:
    """Return the seeded model, laid out on the device, with its optimizers.

    say takes the lines of the summary: sizes, costs and what was chosen.
    """
    use_threads(config.train.threads)
    backends = backends_for(config, device)
    model = seeded(config.train.seed, config.model, backends).to(device)
    choices = [*backends.reasons, *lay_out(model, config.parallel, device)]
    for line in summary(config, corpus, device, backends, choices):
        say(line)
    if config.train.common_start:
        tie_experts(model)
    return TrainState.new(model, config, corpus.identity)
