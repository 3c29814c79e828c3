"""From sources to token shards, once: a second run finds them in the cache."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from moebius.config import DataConfig
from moebius.data.lock import alone
from moebius.data.rows import PARQUET_SUFFIXES
from moebius.data.shards import FORMAT_VERSION, TOKENIZER, Meta, file_sha256, token_dtype
from moebius.data.sources import Document, Skipped, documents, mixture, source_files
from moebius.data.stream import TokenStream, open_split
from moebius.data.tokenise import PROGRESS, Tokenised, tokenise
from moebius.data.tokenise import document_hash as document_hash
from moebius.data.tokenizer import Tokenizer, prepare_tokenizer, sample, tokenizer_file
from moebius.data.workers import cores
from moebius.errors import ConfigError, DataError, StorageError

ABANDONED_SECONDS = 7 * 24 * 3600  # a killed preparation is taken up by the next of the same corpus; others' go after a week

Report = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """Prepared sources: a folder for each, and all of them as one stream a side. skipped: documents left out because they
    could not be read. identity: of the tokens, whatever the folders are called."""

    folders: list[Path]
    tokenizer: Tokenizer
    train: TokenStream
    val: TokenStream
    skipped: int
    identity: str

    @property
    def folder(self) -> Path:
        """The first source's."""
        return self.folders[0]

    @property
    def val_bytes_per_token(self) -> float:
        """Bytes of held-out text for each of its tokens, separators counted, the mean of the sources by weight: turns nats per
        token into bits per byte."""
        parts = self.val.parts
        each = (part.weight * part.num_bytes / (part.stop - part.start) for part in parts)
        return sum(each) / sum(part.weight for part in parts)

    def summary(self) -> str:
        """One line of sizes."""
        left_out = f", {self.skipped:,} documents left out" if self.skipped else ""
        sources = f", {len(self.folders)} sources" if len(self.folders) > 1 else ""
        return (
            f"{len(self.train):,} training tokens of {self.train.num_documents:,} documents, {len(self.val):,} held out of "
            f"{self.val.num_documents:,}; {self.tokenizer.size:,} ids, {self.val_bytes_per_token:.2f} bytes a "
            f"token{sources}{left_out}"
        )


def prepare(config: DataConfig, vocab_size: int, report: Report | None = None, progress: bool = False) -> Corpus:
    """The corpus of a configuration, from the cache or made now, for a model of `vocab_size` ids.

    A document is stored as the end-of-text token and then its text: its first token is predicted too, and its end is the
    next document's separator. Which documents are held out follows from a hash of each alone, so equal documents share a
    side, in all sources, and the split is the same on any machine; only a source so small that one side got nothing gives it
    one document, whatever other sources do with an equal one. Of several sources each has a folder, found again in any mixture
    with the same tokenizer. `report` gets lines to print. Raises DataError, StorageError, ConfigError.
    """
    report = report or (lambda line: None)
    cache = Path(os.path.expanduser(config.cache))  # noqa: PTH111  (Path.expanduser raises RuntimeError for ~nobody)
    sources = mixture(config)
    try:
        key = tokenizer_key(config, vocab_size)
        tokenizer = _tokenizer(config, vocab_size, cache, f"tokenizer-{key}", report)
        _check_size(tokenizer, vocab_size)
        folders = [cache / cache_key(each, key) for each in sources]
        for each, folder in zip(sources, folders, strict=True):
            if not folder.is_dir():
                with alone(cache / f".{folder.name}.lock", report):
                    if not folder.is_dir():
                        _make(each, tokenizer, folder, report, progress)
    except OSError as error:
        place = error.filename or cache
        raise StorageError(f"{place}: {error.strerror or error}; set --data.cache to a folder that can be written") from None
    metas = [_checked(folder, tokenizer) for folder in folders]
    weights = list(sources.values())
    train, val = (TokenStream.joined([open_split(folder, side) for folder in folders], weights) for side in ("train", "val"))
    contents = [shard.sha256 for meta in metas for split in meta.splits.values() for shard in split.shards]
    return Corpus(folders, tokenizer, train, val, sum(meta.skipped for meta in metas), _digest([contents, weights]))


def is_prepared(config: DataConfig, vocab_size: int) -> bool:
    """Whether `prepare` would find everything in the cache. Raises DataError, StorageError for a source that is not there."""
    cache = Path(os.path.expanduser(config.cache))  # noqa: PTH111  (as in `prepare`)
    key = tokenizer_key(config, vocab_size)
    is_trained = config.tokenizer != "bpe" or any(cache.glob(f"tokenizer-{key}-*.json"))
    return is_trained and all((cache / cache_key(each, key)).is_dir() for each in mixture(config))


def cache_key(config: DataConfig, tokenizer: str) -> str:
    """Of everything the shards of one source depend on: settings, each file's name, size and time, the tokenizer's key.

    A data set on the Hugging Face hub is known by its name alone: asking for its revision would need the network each time.
    """
    return _digest([_settings(config, "errors", "source", "text_field", "val_fraction"), _stats(config), tokenizer])


def tokenizer_key(config: DataConfig, vocab_size: int) -> str:
    """Of everything the tokenizer depends on: of a BPE the sources too, of a file its contents."""
    if config.tokenizer == "bytes":
        return "bytes"
    if config.tokenizer != "bpe":
        return file_sha256(tokenizer_file(config)) if tokenizer_file(config).is_file() else ""
    sources = {each.source: (weight, _stats(each)) for each, weight in mixture(config).items()}
    return _digest([_settings(config, "errors", "text_field"), config.vocab_size or vocab_size, sources])


def _settings(config: DataConfig, *names: str) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if name in names}


def _stats(config: DataConfig) -> list[tuple[str, int, int]]:
    try:
        return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in source_files(config)]
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from None


def _digest(identity: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT_VERSION, identity]).encode()).hexdigest()[:20]


def _tokenizer(config: DataConfig, vocab_size: int, cache: Path, name: str, report: Report) -> Tokenizer:
    """A trained one is kept, with its checksum in its name, so that damage is noticed."""
    if config.tokenizer != "bpe":
        return prepare_tokenizer(config, vocab_size, [])
    if not list(cache.glob(f"{name}-*.json")):
        with alone(cache / f".{name}.lock", report):
            if not list(cache.glob(f"{name}-*.json")):
                report(f"training a tokenizer on {config.source}")
                _train(config, vocab_size, cache, name)
    file = next(cache.glob(f"{name}-*.json"))
    if file_sha256(file) != file.stem.rpartition("-")[2]:
        raise DataError(f"{file}: damaged, its checksum differs; delete it to train it again")
    return Tokenizer.load(file)


def _train(config: DataConfig, vocab_size: int, cache: Path, name: str) -> None:
    sources = mixture(config)
    samples = (
        sample((document.text for document in documents(each)), weight / sum(sources.values()))
        for each, weight in sources.items()
    )
    tokenizer = prepare_tokenizer(config, vocab_size, chain.from_iterable(samples))
    aside = cache / f".{name}.partial"
    try:
        tokenizer.save(aside)
        _sync(aside)
        aside.rename(cache / f"{name}-{file_sha256(aside)}.json")
    finally:
        aside.unlink(missing_ok=True)


def _make(config: DataConfig, tokenizer: Tokenizer, folder: Path, report: Report, progress: bool) -> None:
    """Write aside, then rename: a folder of its final name is whole. What a kill, or Ctrl-C, leaves aside is gone on with."""
    _clear_abandoned(folder.parent)
    aside = folder.with_name(f".{folder.name}.partial")
    report(f"{'going on with' if aside.is_dir() else 'preparing'} {config.source} (kept in {folder})")
    try:
        aside.mkdir(exist_ok=True)
        _fill(aside, config, tokenizer, report, progress)
        for path in (*aside.iterdir(), aside):
            _sync(path)
        aside.rename(folder)
        _sync(folder.parent)
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) and (aside / PROGRESS).exists()):
            shutil.rmtree(aside, ignore_errors=True)
        raise


def _fill(folder: Path, config: DataConfig, tokenizer: Tokenizer, report: Report, progress: bool) -> None:
    tokenizer.save(folder / TOKENIZER)
    skipped, found = _tokenised(folder, config, tokenizer, config.val_fraction, progress)
    hashes = found.hashes
    if len(hashes) < 2:
        amount = "one document only" if hashes else "no text in it"
        left_out = f" ({skipped.count:,} left out; the first: {skipped.first})" if skipped.count else ""
        raise DataError(
            f"data.source={config.source!r}: {amount}{left_out}; at least two different documents are needed, "
            "one to train on and one to hold out"
        )
    if not min(hashes) < config.val_fraction <= max(hashes):
        # so few documents that one side got none: the lowest hash is held out, or the highest trained on
        fraction = sorted(hashes)[1] if min(hashes) >= config.val_fraction else max(hashes)
        skipped, found = _tokenised(folder, config, tokenizer, fraction, progress)
    Meta(
        dtype=token_dtype(tokenizer.size).name,
        vocab_size=tokenizer.size,
        end_of_text=tokenizer.end_of_text,
        tokenizer_sha256=file_sha256(folder / TOKENIZER),
        skipped=skipped.count,
        splits=found.splits,
    ).write(folder)
    if skipped.count:
        report(f"left out {skipped.count:,} documents that could not be read; the first: {skipped.first}")


def _tokenised(
    folder: Path, config: DataConfig, tokenizer: Tokenizer, val_fraction: float, progress: bool
) -> tuple[Skipped, Tokenised]:
    skipped = Skipped()

    def found() -> Iterator[Document]:
        skipped.count = 0
        return documents(config, skipped)

    with _bar(config) if progress else nullcontext(lambda num_bytes: None) as advance:
        return skipped, tokenise(folder, found, tokenizer, val_fraction, config.workers or cores(), advance)


def _checked(folder: Path, tokenizer: Tokenizer) -> Meta:
    meta = Meta.read(folder)
    if file_sha256(folder / TOKENIZER) != meta.tokenizer_sha256:
        raise DataError(f"{folder / TOKENIZER}: not the one the tokens were made with; delete {folder} to prepare it again")
    if hashlib.sha256(tokenizer.to_json().encode()).hexdigest() != meta.tokenizer_sha256:
        raise DataError(f"{folder}: made with another tokenizer; delete it to prepare it again")
    return meta


def _check_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.size > vocab_size:
        raise ConfigError(
            f"model.vocab_size={vocab_size}: the tokenizer has {tokenizer.size} ids; set --model.vocab_size {tokenizer.size}"
        )


@contextmanager
def _bar(config: DataConfig) -> Iterator[Callable[[int], None]]:
    """Bytes of text done, of all if that is known beforehand; gives the function that moves it."""
    files = source_files(config)
    is_compressed = any(file.suffix.lower() in PARQUET_SUFFIXES for file in files)
    total = None if is_compressed or not files else sum(file.stat().st_size for file in files)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("tokenising", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _clear_abandoned(cache: Path) -> None:
    """Remove what preparations and downloads that were killed a week ago or more have left."""
    for aside in (*cache.glob(".*.partial"), *cache.glob("downloads/.*.partial")):
        try:
            newest = max(path.stat().st_mtime for path in (aside, *aside.iterdir()))
        except OSError:  # its owner has just published or removed it, or it is a file
            continue
        if time.time() - newest > ABANDONED_SECONDS:
            shutil.rmtree(aside, ignore_errors=True)
