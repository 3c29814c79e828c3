"""What `moebius evaluate` evaluates: the model of a run or of an exported folder, and a text."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from moebius.config import Config, DataConfig, TrainConfig
from moebius.config.routers import ROUTERS
from moebius.cost.units import counted
from moebius.data import Corpus, Tokenizer, TokenStream, prepare, reopen
from moebius.data.cache import cache_folder
from moebius.data.shards import file_sha256
from moebius.data.source_names import weighted_sources
from moebius.data.stream import open_split
from moebius.errors import CheckpointError, ConfigError, DataError, MoebiusError, StorageError
from moebius.hardware.backends import backends_for
from moebius.infer.imported import stock_weights
from moebius.infer.language_model import LanguageModel, language_model
from moebius.infer.seen_text import Change, change, seen
from moebius.infer.stock_files import CONFIG
from moebius.infer.stock_model import stock_model_of
from moebius.infer.stock_tokenizer import FILE
from moebius.infer.trained import trained
from moebius.model.transformer import Transformer
from moebius.train.checkpoint import MANIFEST
from moebius.train.checkpoint_store import folder_of
from moebius.train.not_a_run import is_run
from moebius.train.resumption import corpus_of, own_tokenizer
from moebius.train.run_directory import RunDirectory
from moebius.train.state import check_model, load_model

LONGEST = 4096
"""Most tokens of the sequences that a model from a folder is evaluated on."""
MOST_AT_ONCE = 2**14
"""Most tokens of a batch, where the result does not depend on the batches."""

Report = Callable[[str], None]


class OtherText(NamedTuple):
    """A text that is evaluated in place of the run's own."""

    corpus: Corpus
    """The text; what is evaluated counts as held out."""
    own: dict[str, Change]
    """Whether the text has changed since the run read it, for each source that the run is trained
    on by the name of the source."""


@dataclass(frozen=True)
class Evaluable:
    """A model with its tokenizer and its settings. `evaluable` makes one."""

    folder: Path
    """Directory of the run, or folder of the exported model."""
    run: RunDirectory | None
    """The run, if it is one."""
    step: int | None
    """Step of the checkpoint; None for an exported model."""
    checkpoint: str
    """SHA-256 of the checkpoint's manifest, which lists the hashes of its files, or ""."""
    config: Config
    """The settings of the run, or those that follow from the exported model."""
    tensors: dict[str, Tensor]
    """The weights."""
    tokenizer: Tokenizer
    tokenizer_file: Path
    context: int
    """Most tokens that it reads at once to write text."""

    def model(self, device: torch.device) -> Transformer:
        """Return the model as it is evaluated in training, on the device."""
        parallel = replace(self.config.parallel, compile="off")
        backends = backends_for(replace(self.config, parallel=parallel), device)
        model = Transformer(self.config.model, backends).to(device)
        load_model(model, self.tensors)
        return model.eval()

    def language_model(self, device: torch.device) -> LanguageModel:
        """Return the model as it writes text, on the device."""
        return language_model(
            self.config, self.tensors, self.tokenizer, device, self.context, self.step or 0
        )

    def settings(self, num_tokens: int) -> Config:
        """Return the configuration of an evaluation of about `num_tokens` tokens.

        A router with a capacity drops other tokens in batches of another size, so these are as in
        training. Otherwise they are small enough for any device.
        """
        train = self.config.train
        num_rows = train.micro_batch_size or train.batch_size
        if not ROUTERS[self.config.model.router_type].has_capacity:
            num_rows = min(num_rows, max(1, MOST_AT_ONCE // train.seq_len))
        train = replace(train, eval_tokens=num_tokens, batch_size=num_rows, micro_batch_size=0)
        return replace(self.config, train=train)

    def held_out_text(self, report: Report) -> Corpus:
        """Return the run's text as it was prepared.

        Raises ConfigError for a folder without a text of its own, and DataError or CheckpointError
        if the run's text is damaged or has changed.
        """
        if self.run is None:
            raise ConfigError(
                f"{self.folder}: an exported model has no text of its own; name one with --source"
            )
        record = self.run.record(lambda line: None)  # `evaluable` has reported
        if record is not None:
            with suppress(MoebiusError):
                corpus = reopen(self.config.data, record.folders, self.tokenizer)
                if corpus.identity == record.identity:
                    return corpus
        return corpus_of(self.config, self.run, record, report, progress=False)

    def other_text(self, source: str, report: Report) -> OtherText:
        """Return another text, tokenized for the model, all of which counts as held out.

        Of a source that the run is trained on, only the held-out documents count; `report` gets a
        line about that, a warning if other documents may have been held out when the run read it,
        and a line about other sources that share files with those of the run.

        Raises DataError, StorageError and ConfigError as `prepare` does.
        """
        data = replace(
            self.config.data,
            source=source,
            weights=1.0,
            tokenizer=str(self.tokenizer_file.resolve()),
            vocab_size=0,
        )
        try:
            read = self._own_among(list(weighted_sources(data)), report)
            if not read:
                # The order of the documents, and so the sample, is then the same for any model.
                data = replace(data, val_fraction=DataConfig().val_fraction)
            corpus = prepare(data, self.config.model.vocab_size, report=report)
        except (ConfigError, DataError, StorageError) as error:
            text = str(error).replace("data.source=", "--source ")
            raise type(error)(text) from None
        own: dict[str, Change] = {}
        for name, folder in zip(corpus.names, corpus.folders, strict=True):
            if name in read:
                own[name] = change(read[name], folder)
                report(_about_own(name, own[name]))
        return OtherText(replace(corpus, val=_joined(corpus, set(own))), own)

    def _own_among(self, sources: list[DataConfig], report: Report) -> dict[str, Path | None]:
        """Return the sources that the run is trained on, by their names.

        For each, it is the folder in the cache with what the run read of it, if that is known.
        """
        if self.run is None:
            return {}
        read: dict[str, Path | None] = {}
        folders = self._folders_read(self.run)
        for source in sources:
            name, known = source.source, seen(source, folders)
            if known.own is not None:
                read[name] = folders[known.own]
            elif known.num_shared:
                report(
                    f"{name}: {known.num_shared:,} of its {counted(known.num_files, 'file')} "
                    "belong to the text that the run is trained on, and are evaluated as a whole"
                )
        return read

    def _folders_read(self, run: RunDirectory) -> dict[DataConfig, Path | None]:
        """Return the folder in the cache with what the run read of each of its own sources."""
        sources = list(weighted_sources(self.config.data))
        record = run.record(lambda line: None)  # `evaluable` has reported
        if record is None or len(record.folders) != len(sources):
            return dict.fromkeys(sources)
        cache = cache_folder(self.config.data)
        return {own: cache / name for own, name in zip(sources, record.folders, strict=True)}


def evaluable(path: str, step: int | None, report: Report) -> Evaluable:
    """Return the model of a run or of an exported folder.

    step: the step of the run's checkpoint; None means the newest intact one.

    Raises ConfigError if there is neither, or a step is given for a folder; CheckpointError if the
    weights are missing or damaged; DataError for the tokenizer.
    """
    folder = Path(path)
    if (folder / CONFIG).is_file() and not is_run(folder):
        if step is not None:
            raise ConfigError(f"--step {step}: {path} is an exported model, which has one step")
        return _exported(folder)
    run = RunDirectory.open(path)
    config = run.config()
    record = run.record(report)
    tokenizer = own_tokenizer(config, run, record)
    weights = trained(run, config, record, step, report=report)
    (step,) = weights.steps
    return Evaluable(
        folder=folder,
        run=run,
        step=step,
        checkpoint=file_sha256(folder_of(run.checkpoints, step) / MANIFEST),
        config=config,
        tensors=weights.tensors,
        tokenizer=tokenizer,
        tokenizer_file=run.tokenizer_path,
        context=config.train.longest_seq_len(weights.tokens),
    )


def _exported(folder: Path) -> Evaluable:
    stock = stock_model_of(folder)
    tensors = stock_weights(folder, stock)
    file = folder / FILE
    tokenizer = Tokenizer.load(file)
    model = stock.shape.model
    if tokenizer.size > model.vocab_size:
        raise CheckpointError(
            f"{file}: has {tokenizer.size:,} ids, and the model only {model.vocab_size:,}"
        )
    with torch.device("meta"):
        check_model(Transformer(model), tensors, folder)
    train = replace(TrainConfig(), seq_len=min(stock.seq_len, LONGEST))
    config = Config(model=model, data=DataConfig(), train=train)
    return Evaluable(folder, None, None, "", config, tensors, tokenizer, file, train.seq_len)


def _about_own(name: str, what: Change) -> str:
    """Return the line about a source that the run is trained on."""
    if what == "unchanged":
        return f"{name}: the run is trained on it; only what it holds out is evaluated"
    before, remedy = "it cannot be told whether it has changed since then", ""
    if what == "changed":
        before = "it has changed since then"
        remedy = "; without --source, what the run held out is evaluated"
    return (
        f"WARNING: {name}: the run is trained on it, and {before}: what is held out of it now may "
        f"be text that the run has trained on{remedy}"
    )


def _joined(corpus: Corpus, own: set[str]) -> TokenStream:
    """Return the held-out and, except for the sources in `own`, the training documents."""
    streams, weights = [], []
    for name, folder, part in zip(corpus.names, corpus.folders, corpus.val.parts, strict=True):
        splits = ("val",) if name in own else ("train", "val")
        streams.append(
            TokenStream.joined([open_split(folder, s) for s in splits], [1.0] * len(splits))
        )
        weights.append(part.weight)
    return TokenStream.joined(streams, weights)
