"""Make a new run from a checkpoint of another one, which is only read."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moebius.config import Config
from moebius.config.branching import at_its_place, branched_config
from moebius.config.fields import plain
from moebius.config.files import override
from moebius.config.flags import Values
from moebius.config.phases import weights_per_source
from moebius.config.resuming import PLACE, TEXT, changes
from moebius.data import Corpus
from moebius.data.batches import Stretch
from moebius.data.corpus import identity_of
from moebius.errors import ConfigError
from moebius.model.transformer import Transformer
from moebius.train import checkpoint, checkpoint_store
from moebius.train.checkpoint import Groups
from moebius.train.origin import Begun, Origin
from moebius.train.resumption import Resumed, checkpoint_at, text_with_own_tokenizer
from moebius.train.run_directory import RunDirectory
from moebius.train.run_record import RunRecord
from moebius.train.state import check_model, in_sequences
from moebius.train.state_values import STRETCH
from moebius.train.trained_settings import (
    CONFIG,
    check_belongs,
    last_trained,
    settings_at,
    settings_of,
)

Say = Callable[[str], None]


class Saved(NamedTuple):
    """A verified checkpoint in memory."""

    folder: Path
    tensors: Groups
    values: dict[str, Any]
    """The values of its state.json."""
    sha256: str
    """SHA-256 of its manifest."""

    @property
    def step(self) -> int:
        """The step that it was saved after."""
        return checkpoint_store.step_of(self.folder)


def branch(
    source: RunDirectory,
    name: str,
    values: Values,
    step: int | None,
    say: Say,
    progress: bool = False,
) -> RunDirectory:
    """Return a new run, called `name`, that goes on from a checkpoint of the run `source`.

    step: the step of the checkpoint; None means the newest intact one.
    values: the settings that the branch has anew. The others are those that the step was trained
    with. It lies beside the run, unless `train.out` is among them.

    The checkpoint is read, verified, and written anew, so that the two runs share no file. The
    branch appears under its name when it is complete. Raises ConfigError for a name that is taken
    and for settings that the weights do not fit, CheckpointError for a checkpoint that is not
    there or damaged, and DataError and StorageError as a new run does.
    """
    record = source.record(say)
    latest = last_trained(source, record, say, step)
    place = {"train": {"out": _out(source, values), "name": name}}
    run = RunDirectory.plan(override(latest, place), name)
    if step is None:
        saved = _newest(source, say)
        folder, state = saved.folder, saved.values
    else:
        saved, folder = None, checkpoint_at(source, step)
        state = checkpoint.read_state(folder)
    at_step = checkpoint_store.step_of(folder)
    before = at_its_place(settings_at(source, settings_of(state), latest, at_step), latest)
    config = branched_config(before, override(override(before, values), place))
    _check_goes_on(config, at_step, state.get("tokens", 0))
    run.check_writable()
    saved = saved or _saved(folder)
    check_belongs(folder, saved.values, latest, record.identity if record else "")
    with torch.device("meta"):
        check_model(Transformer(config.model), saved.tensors["model"], folder)
    config, corpus = _text(config, before, source, run, record, say, progress)
    origin = Origin("branched", str(source.root.absolute()), saved.step, saved.sha256)
    changed = {n: pair for n, pair in changes(before, config).items() if n not in PLACE}
    state = _state(in_sequences(saved.values, before.train), before, config, corpus)

    def fill(aside: RunDirectory) -> None:
        checkpoint.write(aside.checkpoints / folder.name, saved.tensors, state)
        aside.write_first_event(Begun(origin, changed))

    new = RunRecord.of(config, corpus, origin=origin)
    owner = run.create(new, source.tokenizer(), say, fill)
    resumed = Resumed.of(saved.step, saved.values["tokens"], before, config)
    say(f"branched from {source.root} at step {saved.step:,}")
    for line in replace(resumed, changed=changed).lines() if resumed and changed else ():
        say(line)
    if state["sequences"] == 0:
        say("it begins at the start of its text, because the text or the seed differs")
    return RunDirectory(owner.folder)


def _out(source: RunDirectory, values: Values) -> Any:
    """Return the folder that the branch lies in. It is not checked yet: `override` does that."""
    match values.get("train"):
        case {"out": out}:
            return out
    return str(source.root.parent)


def _newest(source: RunDirectory, say: Say) -> Saved:
    """Return the newest intact checkpoint of a run. Raises CheckpointError if there is none."""
    loaded: list[Saved] = []
    checkpoint_store.latest(source.checkpoints, say, lambda folder: loaded.append(_saved(folder)))
    return loaded[0]


def _saved(folder: Path) -> Saved:
    """Return a checkpoint. Raises CheckpointError if it is damaged."""
    tensors, values = checkpoint.load(folder)
    manifest = (folder / checkpoint.MANIFEST).read_bytes()
    return Saved(folder, tensors, values, hashlib.sha256(manifest).hexdigest())


def _check_goes_on(config: Config, step: int, tokens: int) -> None:
    """Raise ConfigError if the branch would have nothing to train."""
    if not config.train.is_over(step, tokens):
        return
    if config.train.phases:
        raise ConfigError(
            f"train.phases: the last one ends at {config.train.phases[-1].until} tokens, and the "
            f"branch begins at {tokens}; add a phase, or give an earlier checkpoint with --step"
        )
    else:
        raise ConfigError(
            f"train.steps={config.train.steps}: the branch begins at step {step}; give it "
            "more steps, or an earlier checkpoint with --step"
        )


def _text(
    config: Config,
    before: Config,
    source: RunDirectory,
    run: RunDirectory,
    record: RunRecord | None,
    say: Say,
    progress: bool,
) -> tuple[Config, Corpus]:
    """Return the branch's configuration with its tokenizer, and its text.

    A BPE depends on the text that it was trained on. If the branch has other text, the run's own
    tokenizer.json takes its place.
    """
    names = {*TEXT, "data.weights"} & changes(before, config).keys()
    if not names or (before.data.tokenizer, config.data.tokenizer) != ("bpe", "bpe"):
        return config, text_with_own_tokenizer(config, source, record, say, progress)

    def with_tokenizer(path: Path) -> Config:
        return replace(config, data=replace(config.data, tokenizer=str(path.absolute())))

    theirs = with_tokenizer(source.tokenizer_path)
    corpus = text_with_own_tokenizer(theirs, source, record, say, progress)
    return with_tokenizer(run.tokenizer_path), corpus


def _state(
    values: dict[str, Any], before: Config, config: Config, corpus: Corpus
) -> dict[str, Any]:
    """Return the values of the branch's state.json.

    The branch goes on with the next sequence of each source of the run, however it cuts and mixes
    them. If it has other text or another seed, it begins with the first one.
    """
    state = values | {"corpus": corpus.identity, CONFIG: plain(config)}
    weights = tuple(weight for weight in weights_per_source(before.data) if weight)
    is_same = values["corpus"] in (corpus.identity, identity_of(corpus.checksums, weights))
    if not is_same or config.train.seed != before.train.seed:
        return state | {"sequences": 0, STRETCH: None}
    if values["corpus"] == corpus.identity:
        weights = tuple(part.weight for part in corpus.train.parts)
    stretch = Stretch(before.train.seq_len, weights)
    return state | {STRETCH: values.get(STRETCH) or stretch._asdict()}
