"""Prepare a corpus: tokenize its sources into the cache once, and open the result."""

import errno
import gc
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from moebius.config import DataConfig
from moebius.config.data import check_bpe
from moebius.config.printable import printable_line
from moebius.cost.units import counted
from moebius.data.cache import (
    cache_folder,
    remove_abandoned,
    source_key,
    sync,
    tokenizer_key,
)
from moebius.data.chunk import Chunk
from moebius.data.corpus import Corpus, identity_of
from moebius.data.held_out import TooFew, held_out_below
from moebius.data.ingest import ingest
from moebius.data.inventory import Inventory, check_distinct, inventory, overlaps, root_of
from moebius.data.lock import exclusive_lock
from moebius.data.packing import Rules
from moebius.data.progress_bar import progress_bar
from moebius.data.record import RECORD_FILE
from moebius.data.remote import outdated
from moebius.data.sample import sample
from moebius.data.shards import META, SPLITS, TOKENIZER, Meta, file_sha256, token_dtype
from moebius.data.source_names import check_commas, weighted_sources
from moebius.data.sources import Reading, ReadingRules, chunks, texts
from moebius.data.stream import TokenStream, check_at_start, open_split
from moebius.data.tally import Tally, joined_lines
from moebius.data.tokenizer import Tokenizer, prepare_tokenizer
from moebius.errors import ConfigError, DataError, StorageError
from moebius.hardware.processor import cores

Report = Callable[[str], None]
"""Function that gets lines to show to the user."""
_Listed = Mapping[DataConfig, Inventory]
"""The inventory of each source."""

FEW_HELD_OUT_TOKENS = 10_000
"""Held-out tokens below which the user is warned. Losses of single tokens vary by about 3 nats, so
the mean over 10,000 of them is uncertain by at least 0.03."""


def prepare(
    config: DataConfig, vocab_size: int, report: Report | None = None, progress: bool = False
) -> Corpus:
    """Return the corpus of a configuration, for a model of `vocab_size` ids.

    Sources that are not in the cache are prepared first. `report` gets lines to show to the user,
    and `progress` shows a progress bar on stderr.

    A document is stored as the end-of-text token followed by its text. The model thus learns to
    predict the first token of a document, and also its end, which is the next document's
    separator. Whether a document is held out depends only on its own hash, so equal documents are
    in the same split, in all sources, and the split is the same on any machine. The only exception
    is a source so small that fewer than 16 documents (or a tenth of them) would be held out, or
    none would be trained on: it holds out more of its documents, those with the lowest hashes, or
    trains on the one with the highest hash, whatever other sources do with an equal document. Each
    source has its own folder, which any mixture of sources with the same tokenizer can use.

    Raises DataError, StorageError and ConfigError.
    """
    report = report or (lambda line: None)
    cache = cache_folder(config)
    sources = weighted_sources(config)
    try:
        _check_cache(cache)
        check_commas(single.source for single in sources)
        notes = [outdated(single.source, cache) for single in sources]
        with _without_collection():
            listed = {single: inventory(single) for single in sources}
            key = tokenizer_key(config, vocab_size, listed)
            folders = [cache / source_key(single, key, listed[single]) for single in sources]
        check_distinct(sources, folders)
        for line in filter(None, (*notes, *overlaps(listed))):
            report(line)
        tokenizer = _tokenizer(config, vocab_size, listed, f"tokenizer-{key}", report)
        _check_size(tokenizer, vocab_size)
        for single, folder in zip(sources, folders, strict=True):
            if not folder.is_dir():
                with exclusive_lock(cache / f".{folder.name}.lock", report):
                    if not folder.is_dir():
                        source = _Source(single, listed[single], key, progress)
                        _prepare_source(source, tokenizer, folder, report)
    except OSError as error:
        raise StorageError(
            f"{error.filename or cache}: {error.strerror or error}; "
            "set --data.cache to a folder that can be written"
        ) from None
    return _open(config, tokenizer, folders, _named(sources))


def reopen(config: DataConfig, folders: Sequence[str], tokenizer: Tokenizer) -> Corpus:
    """Return the corpus that was prepared earlier with these settings, without its sources.

    `folders` are the names of its folders in data.cache, and `tokenizer` is the one it was
    prepared with. Raises DataError if a folder is missing, damaged or of another tokenizer.
    """
    cache = cache_folder(config)
    if len(folders) == 1 and not isinstance(config.weights, tuple):
        # A file with a comma in its name is one source, and can no longer be told from two.
        weights: dict[str, float] = {config.source: config.weights}
    else:
        weights = _named(weighted_sources(config))
    if len(weights) != len(folders):
        raise DataError(
            f"data.source={config.source!r}: {counted(len(weights), 'source')}, but prepared from "
            f"{len(folders)}"
        )
    return _open(config, tokenizer, [cache / name for name in folders], weights)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Let no garbage be collected inside the with block, which makes objects that stay.

    To look through the objects of 100,000 files again and again takes a fifth of a start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _named(sources: Mapping[DataConfig, float]) -> dict[str, float]:
    """Return the weight of each source by the source's name."""
    return {single.source: weight for single, weight in sources.items()}


def _check_cache(cache: Path) -> None:
    """Raise OSError if nothing can be written to the cache, before any text is read.

    A folder that holds prepared text need not be writable.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if not os.access(cache, os.W_OK) and not any(cache.glob(f"*/{META}")):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(cache))


def is_prepared(config: DataConfig, vocab_size: int) -> bool:
    """Return whether `prepare` would find everything in the cache.

    Raises DataError, StorageError or ConfigError for a source that cannot be found.
    """
    cache = cache_folder(config)
    listed = {single: inventory(single) for single in weighted_sources(config)}
    key = tokenizer_key(config, vocab_size, listed)
    if config.tokenizer == "bpe" and not any(cache.glob(f"tokenizer-{key}-*.json")):
        return False
    return all((cache / source_key(single, key, listed[single])).is_dir() for single in listed)


def _open(
    config: DataConfig, tokenizer: Tokenizer, folders: list[Path], weight_of: dict[str, float]
) -> Corpus:
    """Return the corpus in the folders, given each source's name and weight in the same order."""
    weights = list(weight_of.values())
    checksum = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
    metas = [_checked_meta(folder, checksum) for folder in folders]
    opened = {
        split: [
            open_split(folder, split, meta) for folder, meta in zip(folders, metas, strict=True)
        ]
        for split in SPLITS
    }
    check_at_start(chain.from_iterable(opened.values()))
    train, val = (TokenStream.joined(opened[split], weights) for split in SPLITS)
    checksums = [
        shard.sha256 for meta in metas for split in meta.splits.values() for shard in split.shards
    ]
    lossy = next((meta.lossy for meta in metas if meta.lossy), "")
    return Corpus(
        folders=folders,
        tokenizer=tokenizer,
        train=train,
        val=val,
        separator=tokenizer.end_of_text if config.document_masking else None,
        skipped=sum(meta.tally.count for meta in metas),
        identity=identity_of(checksums, weights),
        checksums=tuple(checksums),
        names=tuple(weight_of),
        lossy=lossy,
        notes=_notes(list(weight_of), metas, val, lossy),
    )


def _notes(names: list[str], metas: list[Meta], val: TokenStream, lossy: str) -> tuple[str, ...]:
    """Return the lines about what was read and what to beware of, for the user."""
    tallies = [meta.tally.found_in(root_of(name)) for name, meta in zip(names, metas, strict=True)]
    lines = joined_lines(names, tallies)
    if len({meta.held_out_below for meta in metas}) > 1:
        lines.append(
            "small sources hold out a larger share of their documents, so a document that is "
            "also in another source may be trained on there"
        )
    if len(val) < FEW_HELD_OUT_TOKENS:
        lines.append(
            f"WARNING: val_loss rests on {counted(len(val), 'token')} in "
            f"{counted(val.num_documents, 'held-out document')} and is only a rough figure; raise "
            "--data.val_fraction or add text"
        )
    if lossy:
        lines.append(f"WARNING: the tokenizer loses text ({lossy}), so there are no bits per byte")
    return tuple(map(printable_line, lines))


def _checked_meta(folder: Path, tokenizer_sha256: str) -> Meta:
    """Return the folder's meta.json. Raises DataError if it belongs to another tokenizer."""
    meta = Meta.read(folder)
    checksum = file_sha256(folder / TOKENIZER)
    if checksum != meta.tokenizer_sha256:
        what = "not the tokenizer that made the tokens in this folder" if checksum else "missing"
        raise DataError(f"{folder / TOKENIZER}: {what}; delete {folder} to prepare it again")
    if tokenizer_sha256 != meta.tokenizer_sha256:
        raise DataError(
            f"{folder}: prepared with another tokenizer; delete it to prepare it again"
        )
    return meta


def _check_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.size > vocab_size:
        raise ConfigError(
            f"model.vocab_size={vocab_size}: the tokenizer has {tokenizer.size} ids; "
            f"set --model.vocab_size {tokenizer.size}"
        )


def _tokenizer(
    config: DataConfig, vocab_size: int, listed: _Listed, name: str, report: Report
) -> Tokenizer:
    """Return the tokenizer. A BPE is read from the cache, after training it if it is not there.

    The name of a BPE's file contains its checksum, so that damage is noticed.
    """
    if config.tokenizer != "bpe":
        return prepare_tokenizer(config, vocab_size, [])
    check_bpe("model.vocab_size", config.vocab_size or vocab_size)
    cache = cache_folder(config)
    if not list(cache.glob(f"{name}-*.json")):
        with exclusive_lock(cache / f".{name}.lock", report):
            if not list(cache.glob(f"{name}-*.json")):
                report(f"training a tokenizer on {config.source}")
                _train_tokenizer(config, vocab_size, listed, name)
    file = next(cache.glob(f"{name}-*.json"))
    if file_sha256(file) != file.stem.rpartition("-")[2]:
        raise DataError(f"{file}: damaged, its checksum differs; delete it to train it again")
    return Tokenizer.load(file)


def _train_tokenizer(config: DataConfig, vocab_size: int, listed: _Listed, name: str) -> None:
    cache, sources = cache_folder(config), weighted_sources(config)
    total = sum(sources.values())
    samples = (
        sample((text for text, _ in texts(single, listed=listed[single])), weight / total)
        for single, weight in sources.items()
    )
    tokenizer = prepare_tokenizer(config, vocab_size, chain.from_iterable(samples))
    partial = cache / f".{name}.partial"
    try:
        tokenizer.save(partial)
        sync(partial)
        partial.rename(cache / f"{name}-{file_sha256(partial)}.json")
    finally:
        partial.unlink(missing_ok=True)


class _Source(NamedTuple):
    """A single source that is being prepared."""

    config: DataConfig
    listed: Inventory
    key: str
    """The key of its tokenizer."""
    has_bar: bool
    """Whether a progress bar is shown."""

    def bar(self, task: str) -> AbstractContextManager[Callable[[int], None]]:
        """Return a context with a function that gets the bytes that were read for a task."""
        if not self.has_bar:
            return nullcontext(lambda num_bytes: None)
        return progress_bar(self.listed.files, task)


def _prepare_source(source: _Source, tokenizer: Tokenizer, folder: Path, report: Report) -> None:
    """Fill a temporary folder and rename it, so that a folder called `folder` is always complete.

    If the process is killed, or stopped by a signal after it has recorded its progress, the
    temporary folder stays, and the next preparation continues from it. Raises DataError if a file
    changes while it is read.
    """
    config, listed = source.config, source.listed
    remove_abandoned(folder.parent)
    partial = folder.with_name(f".{folder.name}.partial")
    action = "continuing to prepare" if partial.is_dir() else "preparing"
    report(f"{action} {config.source} (in {folder})")
    try:
        partial.mkdir(exist_ok=True)
        _fill(partial, source, tokenizer)
        if source_key(config, source.key, inventory(config, known=listed)) != folder.name:
            raise DataError(
                f"data.source={config.source!r}: its files changed while they were read; "
                "start again when they are complete"
            )
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(folder)
        sync(folder.parent)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and (partial / RECORD_FILE).exists():
            error.add_note("the same command continues with what has been tokenized so far")
        else:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _fill(folder: Path, source: _Source, tokenizer: Tokenizer) -> None:
    """Write the tokenizer, the shards and meta.json of a single source."""
    tokenizer.save(folder / TOKENIZER)
    config, listed, tally = source.config, source.listed, Tally()
    with source.bar("reading") as advance:
        found = (text for text, _ in texts(config, tally, listed))
        try:
            fraction = held_out_below(found, config.val_fraction, advance)
        except TooFew as few:
            raise DataError(_too_few(config, few.args[0], tally)) from None

    def read_chunks() -> Iterator[tuple[Chunk, Reading]]:
        tally.clear()
        return chunks(config, tally, listed)

    rules = Rules(fraction, ReadingRules.of(config))
    with source.bar("tokenizing") as advance:
        ingested = ingest(
            folder, read_chunks, tokenizer, rules, config.workers or cores(), advance
        )
    Meta(
        dtype=token_dtype(tokenizer.size).name,
        vocab_size=tokenizer.size,
        end_of_text=tokenizer.end_of_text,
        tokenizer_sha256=file_sha256(folder / TOKENIZER),
        tally=tally.relative_to(root_of(config.source)),
        held_out_below=fraction,
        lossy=ingested.lossy,
        splits=ingested.splits,
    ).write(folder)


def _too_few(config: DataConfig, num_documents: int, tally: Tally) -> str:
    """Return the message for a source that has less than two different documents."""
    amount = "one document only" if num_documents else "no text in it"
    reasons = [f"{tally.count:,} left out; the first: {tally.first}"] if tally.count else []
    reasons += [f"passed over: {tally.reasons()}"] if tally.passed_over else []
    more = f" ({'; '.join(reasons)})" if reasons else ""
    return (
        f"data.source={config.source!r}: {amount}{more}; at least two different documents are "
        "needed, one to train on and one to hold out"
    )
