"""What a resumed run needs before it trains: its text, a checkpoint, and what has changed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moebius.config import Config
from moebius.config.fields import plain, shown
from moebius.config.resuming import TEXT, changes, value_of
from moebius.data import Corpus, Tokenizer, prepare, reopen
from moebius.data.cache import cache_folder
from moebius.data.shards import TOKENIZER, file_sha256
from moebius.errors import CheckpointError, ConfigError, DataError, MoebiusError, StorageError
from moebius.observe.expert_counts import copy_later_counts
from moebius.observe.line_file import copy_later, read_lines
from moebius.observe.sink import RESUMED
from moebius.parallel.ranks import from_first, has_peers
from moebius.train import checkpoint_store
from moebius.train.run_directory import EVALUATIONS, RunDirectory
from moebius.train.run_record import RunRecord
from moebius.train.schedule import learning_rate
from moebius.train.state import Content, TrainState

Say = Callable[[str], None]


@dataclass(frozen=True)
class Resumed:
    """The event of a run that goes on with other settings, or from an earlier step."""

    step: int
    changed: dict[str, tuple[Any, Any]]
    """The old and the new value of each setting that has changed."""
    rates: tuple[float, float]
    """Learning rate of the next step, with the old settings and with the new ones."""
    aside: str = ""
    """Name of the folder in the run's directory that keeps what was written after `step`."""

    @classmethod
    def of(
        cls,
        step: int,
        tokens: int,
        before: Config,
        after: Config,
        aside: str = "",
        is_new: bool = False,
    ) -> "Resumed | None":
        """Return the event of a run that is resumed, or None if it goes on as it was.

        tokens: the number of tokens up to the step.
        before: the configuration that the step was trained with.
        is_new: the run has just been given other settings than it had last, which may be those of
        the step again.
        """
        changed = changes(before, after)
        rates = (
            learning_rate(step, before.train, tokens),
            learning_rate(step, after.train, tokens),
        )
        return cls(step, changed, rates, aside) if changed or aside or is_new else None

    def lines(self) -> list[str]:
        """Return a line for each setting that has changed, and for what follows from that."""
        lines = [
            f"changed from step {self.step + 1:,} on: {name} {shown(old)} -> {shown(new)}"
            for name, (old, new) in self.changed.items()
        ] or [f"the settings from step {self.step + 1:,} on are those of the steps before"]
        old, new = self.rates
        if not math.isclose(old, new, rel_tol=1e-6):
            lines.append(
                f"the learning rate jumps: step {self.step + 1:,} has {new:.4g}, and would have "
                f"had {old:.4g}"
            )
        if self.aside:
            lines.append(f"what was written after step {self.step:,} is kept in {self.aside}/")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the event as an object for events.jsonl."""
        changed = {name: plain(values) for name, values in self.changed.items()}
        event = {"event": RESUMED, "step": self.step, "changed": changed, "lr": list(self.rates)}
        return event | ({"aside": self.aside} if self.aside else {})

    def is_in(self, run: RunDirectory) -> bool:
        """Return whether the last such event in the run's events.jsonl is this one.

        Raises StorageError.
        """
        try:
            events = read_lines(run.events_path) if run.events_path.exists() else []
        except OSError as error:
            raise StorageError(f"{run.events_path}: {error.strerror}") from None
        last = [event for event in events if event.get("event") == RESUMED][-1:]
        return last == [self.to_json()]

    def __str__(self) -> str:
        count = len(self.changed)
        settings = f"{count} changed setting{'' if count == 1 else 's'}"
        kept = settings if count else "the same settings"
        return f"resumed with {kept} from step {self.step + 1:,} on"


def corpus_of(
    config: Config, run: RunDirectory, record: RunRecord | None, say: Say, progress: bool
) -> Corpus:
    """Return the text of a run that is resumed, as it was prepared for the run.

    Raises as `text_with_own_tokenizer` does, and CheckpointError if the text is not the run's.
    """
    corpus = text_with_own_tokenizer(config, run, record, say, progress)
    if record and record.identity != corpus.identity:
        raise CheckpointError(
            f"{run.root}: trained on another text than data.source={config.data.source!r} now "
            "gives; its files have changed, or their order"
        )
    return corpus


def text_with_own_tokenizer(
    config: Config, run: RunDirectory, record: RunRecord | None, say: Say, progress: bool
) -> Corpus:
    """Return the text of a configuration, which a run's tokenizer has to tokenize.

    Its sources, which may be millions of files, are only looked at if the prepared text is no
    longer there, or if this is another text than the run's. Raises ConfigError or DataError if
    the tokenizer is not the run's.
    """
    tokenizer = own_tokenizer(config, run, record)
    if corpus := _reopened(config, record, tokenizer):
        say(f"the run goes on with its text as it was prepared ({corpus.folder})")
        return corpus
    corpus = prepare(config.data, config.model.vocab_size, report=say, progress=progress)
    if corpus.tokenizer.to_json() != tokenizer.to_json():
        cause = "its text" if config.data.tokenizer == "bpe" else "the tokenizer"
        raise ConfigError(
            f"{run.root}: data.source={config.data.source!r} with data.tokenizer="
            f"{config.data.tokenizer!r} gives another tokenizer than the run's: {cause} has "
            "changed"
        )
    return corpus


def own_tokenizer(config: Config, run: RunDirectory, record: RunRecord | None) -> Tokenizer:
    """Return the run's tokenizer. Raises DataError if its file is missing or has changed.

    Another tokenizer would give other ids, and any text would be nonsense to the model.
    """
    path = run.tokenizer_path
    remedy = "restore it from a copy"
    for name in record.folders if record else ():
        copy = cache_folder(config.data) / name / TOKENIZER
        if copy.is_file() and record and file_sha256(copy) == record.tokenizer:
            remedy = f"restore it, for example from {copy}"
            break
    if not path.exists():
        raise DataError(f"{path}: the run's tokenizer was deleted; {remedy}")
    if record and record.tokenizer and file_sha256(path) != record.tokenizer:
        raise DataError(f"{path}: the run's tokenizer has changed since it began; {remedy}")
    tokenizer = run.tokenizer()
    if tokenizer.size > config.model.vocab_size:  # a run of an earlier version, without a record
        raise DataError(f"{path}: has changed, it has more ids than the model; {remedy}")
    return tokenizer


def load_checkpoint(
    run: RunDirectory, state: TrainState, say: Say, step: int | None, owns: bool
) -> bool:
    """Load the newest intact checkpoint, or that of a step, into the state.

    Returns False, and leaves the state as it is, if the run was stopped before its first
    checkpoint. Checkpoints that are passed over are set aside. Raises CheckpointError if no
    checkpoint can be loaded.
    """
    contents: list[Content] = []

    def read(folder: Path) -> None:
        contents.append(state.read(folder))

    if owns or not has_peers():  # the others get it from the first process
        if step is not None:
            read(checkpoint_at(run, step))
        else:
            checkpoint_store.load_newest(run.checkpoints, read, say, set_aside=owns)
    if is_any := from_first(bool(contents)):
        state.take(contents.pop() if contents else None)
    return is_any


def checkpoint_at(run: RunDirectory, step: int) -> Path:
    """Return the checkpoint of a step. Raises CheckpointError, which lists those that exist."""
    folders = checkpoint_store.complete(run.checkpoints)
    steps = {checkpoint_store.step_of(folder): folder for folder in folders}
    if step in steps:
        return steps[step]
    listed = f"there are those of steps {', '.join(map(str, sorted(steps)))}"
    raise CheckpointError(
        f"{run.root}: no checkpoint of step {step}; {listed if steps else 'there is none at all'}"
    )


def check_steps(before: Config, after: Config, step: int) -> None:
    """Raise ConfigError if the run is already beyond the end that it is given now.

    before is the configuration that the run had last.
    """
    if after.train.phases:
        return  # a run whose phases are over is finished
    if after.train.steps < step and after.train.steps != before.train.steps:
        raise ConfigError(
            f"train.steps={after.train.steps}: the run is at step {step} already; give more "
            "steps, or an earlier checkpoint with --step"
        )


def set_aside(run: RunDirectory, step: int) -> str:
    """Move what the run wrote after a step to a new folder, and return the folder's name.

    These are the checkpoints and their evaluations; metrics and events are copied, because the
    sinks drop them. Returns "" if there is nothing to move. Raises StorageError.
    """
    try:
        folders = checkpoint_store.complete(run.checkpoints)
        later = [folder for folder in folders if checkpoint_store.step_of(folder) > step]
        place = _new_folder(run.root)
        logs = [copy_later(path, step, place / path.name) for path in run.logs]
        logs.append(copy_later_counts(run.root, step, place))
        evaluations = run.evaluations_after(step)
        if not later and not evaluations and not any(logs):
            place.rmdir()
            return ""
        for file in evaluations:
            (place / EVALUATIONS).mkdir(exist_ok=True)
            file.rename(place / EVALUATIONS / file.name)
        for folder in later:  # newest first, so that those that remain have no gap
            folder.rename(place / folder.name)
    except OSError as error:
        raise StorageError(f"{error.filename or run.root}: {error.strerror or error}") from None
    return place.name


def _new_folder(root: Path) -> Path:
    """Create and return a folder that is named after the time."""
    name = time.strftime("aside-%Y%m%d-%H%M%S")
    number = 1
    while True:
        place = root / (name if number == 1 else f"{name}-{number}")
        try:
            place.mkdir()
            return place
        except FileExistsError:
            number += 1


def _reopened(config: Config, record: RunRecord | None, tokenizer: Tokenizer) -> Corpus | None:
    """Return the text as it was prepared for the run, or None if it is not in the cache.

    It is also None if the run was given another text just now, which could not be read.
    """
    if not record or any(value_of(record.config, n) != value_of(config, n) for n in TEXT):
        return None
    try:
        corpus = reopen(config.data, record.folders, tokenizer)
    except MoebiusError:
        return None
    return corpus if corpus.identity == record.identity else None
