"""Turn a configuration into a session that is ready to train, new or resumed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from moebius import __version__
from moebius.config import Config, TrainConfig
from moebius.config.fields import settings, shown
from moebius.config.resuming import resumed_config, value_of
from moebius.data import Batches, Corpus, Feed, check_evaluable, prepare
from moebius.data.shards import file_sha256
from moebius.hardware.backends import backends_for
from moebius.hardware.device import check_fits, choose_device
from moebius.hardware.threads import use_threads
from moebius.model.transformer import lookahead, seeded
from moebius.observe.registry import check_sinks
from moebius.observe.sink import Event
from moebius.parallel.group import Peers, check_alike
from moebius.parallel.layout import check_layout, grid_of, lay_out, placement_of
from moebius.parallel.process import Process
from moebius.parallel.ranks import from_first, num_ranks
from moebius.train.checkpoint_store import tidy
from moebius.train.common_start import tie_experts
from moebius.train.course import Course
from moebius.train.ownership import Ownership
from moebius.train.resumption import Resumed, check_steps, corpus_of, load_checkpoint, set_aside
from moebius.train.run_directory import RunDirectory
from moebius.train.run_record import RunRecord
from moebius.train.state import TrainState
from moebius.train.summary import summary
from moebius.train.trained_settings import last_trained, settings_at

Say = Callable[[str], None]

OWN = ("data.cache", "data.workers", "train.out", "train.threads")
"""Settings that may differ between the processes of a run, because their machines do."""


@dataclass(frozen=True)
class Session:
    """A run in memory: everything that the training loop works on."""

    config: Config
    run: RunDirectory
    corpus: Corpus
    course: Course
    """The settings and the batch of each step."""
    state: TrainState
    peers: Peers
    """The connection with the other processes of the run."""
    record: RunRecord
    """What run.json says about this run once it trains."""
    owner: Ownership | None = None
    """The right to write into the run's directory; None in a process that does not write."""
    resumed: Resumed | None = None
    """What has changed in a run that is resumed; None if nothing has."""
    before: Config | None = None
    """The configuration that the step was trained with that a resumed run continues from; None in
    a new run."""
    is_saved: bool = False
    """Whether a checkpoint of the run holds the state that it begins with."""

    @property
    def process(self) -> Process:
        """Which of the run's processes this one is."""
        return self.peers.process

    @property
    def feed(self) -> Feed:
        """The training batches of the current phase, on their way to the device."""
        return self.course.feed

    @property
    def device(self) -> torch.device:
        """The device that this process trains on."""
        return self.feed.device

    @property
    def trained(self) -> TrainConfig:
        """The settings that the state was trained with when the session began."""
        return (self.before or self.config).train

    def check_owned(self) -> None:
        """Raise LostRunError if the run's directory is not this process's any more."""
        if self.owner is not None:
            self.owner.check()

    def begin(self, report: Callable[[Event], None]) -> None:
        """Report what has changed in a run that is resumed, and record the new state of it.

        The record comes last. If the process is killed before, the change is reported again. A
        change is recorded once, although a run that is killed before its next checkpoint makes it
        again. Raises StorageError.
        """
        if not self.process.writes:
            return
        if self.resumed is not None and not self.resumed.is_in(self.run):
            report(self.resumed)
        if self.run.record(lambda line: None) != self.record:
            self.record.write(self.run.record_path)


def start(
    config: Config, source: str, say: Say, progress: bool = False, peers: Peers | None = None
) -> Session:
    """Return the session of a new run.

    source is the preset or file that the configuration came from; an unnamed run is named after
    it. say takes the lines of the summary. The run's directory is created last, so that a run that
    cannot begin leaves no directory. Without `peers`, this process trains alone. Raises
    ConfigError at once if the model is too large for the device, and StorageError if the directory
    could not be created.
    """
    peers = peers or Peers(Process.single("training from Python"))
    process = peers.process
    say = say if process.writes else _silent
    device = _device(config, process)
    if process.writes:
        run = RunDirectory.plan(config, source)
    else:  # the first process may have created it already
        run = RunDirectory(Path(config.train.out) / (config.train.name or source))
    check_layout(config, process.world_size)
    check_fits(config, device, grid_of(config.parallel, process.world_size).share(config))
    if process.writes:
        check_sinks(config.observe)
        run.check_writable()
    shows, size = progress and process.writes, config.model.vocab_size
    corpus = peers.first_before_others(
        lambda: prepare(config.data, size, report=say, progress=shows)
    )
    check_alike(_facts(config, corpus))
    course = Course(config, corpus, device, process)
    record, owner = RunRecord.of(config, corpus), None
    if process.writes:
        owner = run.create(record, corpus.tokenizer, say)
        run = RunDirectory(owner.folder)
        record = run.record(say) or record
    run = RunDirectory(Path(from_first(str(run.root))))
    state = build(config, corpus, device, say)
    return Session(config, run, corpus, course, state, peers, record, owner)


def resume(
    config: Config,
    run: RunDirectory,
    say: Say,
    progress: bool = False,
    peers: Peers | None = None,
    step: int | None = None,
) -> Session:
    """Return the session of a run that continues from its newest intact checkpoint.

    With `step`, it continues from the checkpoint of that step, and what it wrote later is set
    aside. A run that was stopped before its first checkpoint starts over. say and peers are
    those of `start`. The configuration may differ from the run's as moebius/config/resuming.py
    says; it is then the run's from now on. What has changed is found by comparing it with the
    settings that the checkpoint was trained with.

    Raises ConfigError if another process trains the run or a setting may not change, and
    CheckpointError if no checkpoint can be loaded or the run's text has changed.
    """
    peers = peers or Peers(Process.single("training from Python"))
    process = peers.process
    say = say if process.writes else _silent
    device = _device(config, process)
    record = run.record(say)
    latest = last_trained(run, record, say, step)
    config = resumed_config(latest, config)
    check_layout(config, process.world_size)
    owner = None
    if process.writes:
        check_sinks(config.observe)
        owner = run.own(say)
        tidy(run.checkpoints)
    shows = progress and process.writes
    corpus = peers.first_before_others(lambda: corpus_of(config, run, record, say, shows))
    check_alike(_facts(config, corpus))  # from here on, the files of the run may change
    state = build(config, corpus, device, say)
    is_saved = load_checkpoint(run, state, say, step, owns=process.writes)
    check_steps(latest, config, state.step)
    before = settings_at(run, state.trained, latest, state.step) if is_saved else latest
    course = Course(config, corpus, device, process)
    aside = set_aside(run, state.step) if step is not None and process.writes else ""
    at = (state.step, state.tokens)
    resumed = Resumed.of(*at, before, config, aside, is_new=latest != config)
    say(f"resuming {run.root} at step {state.step:,} of {config.train.last_step(*at):,}")
    for line in resumed.lines() if resumed else ():
        say(line)
    if process.writes and not run.has_written(config):
        run.write_config(config)
    origin = record.origin if record else None
    record = RunRecord.of(config, corpus, file_sha256(run.tokenizer_path), origin)
    return Session(
        config, run, corpus, course, state, peers, record, owner, resumed, before, is_saved
    )


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
    model = seeded(config.train.seed, config.model, backends)
    if config.train.common_start:
        tie_experts(model)
    placement = placement_of(config.parallel, num_ranks(), device)
    choices = [*backends.reasons, *lay_out(model, config.parallel, device, placement)]
    share = placement.grid.share(config)
    for line in summary(config, corpus, device, backends, choices, share):
        say(line)
    return TrainState.new(model, config, corpus.identity, placement)


def _device(config: Config, process: Process) -> torch.device:
    """Return the device that this process trains on."""
    return choose_device(
        config.train.device, process.local_rank if process.world_size > 1 else None
    )


def _facts(config: Config, corpus: Corpus) -> dict[str, str]:
    """Return what has to be the same in all processes of a run, by names for the user."""
    values = {name: shown(value_of(config, name)) for name in settings(Config) if name not in OWN}
    versions = {"Moebius": __version__, "torch": torch.__version__}
    return versions | values | {"text (the checksum of data.source)": corpus.identity}


def _silent(line: str) -> None:
    """Drop a line that the first process prints."""
