"""From a source to token shards, once: a second run finds them in the cache."""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from moebius.config import DataConfig
from moebius.data.rows import PARQUET_SUFFIXES
from moebius.data.shards import FORMAT_VERSION, TOKENIZER, Meta, ShardWriter, TokenStream, file_sha256, open_split
from moebius.data.sources import HUGGING_FACE, Document, Skipped, documents, source_files
from moebius.data.tokenizer import Tokenizer, prepare_tokenizer, tokenizer_file
from moebius.errors import ConfigError, DataError, StorageError

BATCH_CHARACTERS = 4_000_000  # tokenised at once: enough for all cores, little in memory
SPLITS = ("train", "val")
ABANDONED_SECONDS = 24 * 3600  # a preparation writes every few seconds while it lives

Report = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """A prepared source. skipped: documents left out because they could not be read."""

    folder: Path
    tokenizer: Tokenizer
    train: TokenStream
    val: TokenStream
    skipped: int

    @property
    def val_bytes_per_token(self) -> float:
        """Bytes of held-out text for each of its tokens, separators counted: turns nats per token into bits per byte."""
        return self.val.num_bytes / len(self.val)

    def summary(self) -> str:
        """One line of sizes."""
        left_out = f", {self.skipped:,} documents left out" if self.skipped else ""
        return (
            f"{len(self.train):,} training tokens of {self.train.num_documents:,} documents, {len(self.val):,} held out of "
            f"{self.val.num_documents:,}; {self.tokenizer.size:,} ids, {self.val_bytes_per_token:.2f} bytes a token{left_out}"
        )


def prepare(config: DataConfig, vocab_size: int, report: Report | None = None, progress: bool = False) -> Corpus:
    """The corpus of a configuration, from the cache or made now, for a model of `vocab_size` ids.

    A document is stored as the end-of-text token and then its text: its first token is predicted too, and its end is the
    next document's separator. Which documents are held out follows from a hash of each alone, so equal documents share a
    side and the split is the same on any machine. `report` gets lines to print. Raises DataError, StorageError, ConfigError.
    """
    cache = Path(os.path.expanduser(config.cache))  # noqa: PTH111  (Path.expanduser raises RuntimeError for ~nobody)
    folder = cache / cache_key(config, vocab_size)
    try:
        if not folder.is_dir():
            _make(config, vocab_size, folder, report or (lambda line: None), progress)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}; set --data.cache to a folder that can be written") from None
    meta = Meta.read(folder)
    if file_sha256(folder / TOKENIZER) != meta.tokenizer_sha256:
        raise DataError(f"{folder / TOKENIZER}: not the one the tokens were made with; delete {folder} to prepare it again")
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    _check_size(tokenizer, vocab_size)
    return Corpus(folder, tokenizer, open_split(folder, "train"), open_split(folder, "val"), meta.skipped)


def cache_key(config: DataConfig, vocab_size: int) -> str:
    """Of everything the shards depend on: settings, tokenizer file, and each source file's name, size and time.

    A data set on the Hugging Face hub is known by its name alone: asking for its revision would need the network each time.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in ("cache", "document_masking")}
    settings["vocab_size"] = (config.vocab_size or vocab_size) if config.tokenizer == "bpe" else 0
    try:
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in source_files(config)]
        if config.tokenizer not in ("bpe", "bytes") and tokenizer_file(config).is_file():
            settings["tokenizer"] = hashlib.sha256(tokenizer_file(config).read_bytes()).hexdigest()
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from None
    identity = json.dumps([FORMAT_VERSION, settings, stats])
    return hashlib.sha256(identity.encode()).hexdigest()[:20]


def document_hash(data: bytes) -> float:
    """A number in [0, 1) that depends on the document's bytes alone; below data.val_fraction it is held out."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest()) / 2**48


def _make(config: DataConfig, vocab_size: int, folder: Path, report: Report, progress: bool) -> None:
    """Write aside, under a name of this process's own, then rename: a folder of its final name is whole."""
    report(f"preparing {config.source} (kept in {folder})")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(folder)
    # a random name: process ids repeat across the containers that share a cache. (mkdtemp would shut other users out.)
    aside = folder.parent / f".{folder.name}.{secrets.token_hex(8)}.partial"
    try:
        aside.mkdir()
        _fill(aside, config, vocab_size, report, progress)
        _publish(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _fill(folder: Path, config: DataConfig, vocab_size: int, report: Report, progress: bool) -> None:
    tokenizer = prepare_tokenizer(config, vocab_size, (document.text for document in documents(config)))
    _check_size(tokenizer, vocab_size)
    skipped, hashes = _tokenise(folder, config, tokenizer, config.val_fraction, progress)
    if len(hashes) < 2:
        found = "one document only" if hashes else "no text in it"
        left_out = f" ({skipped.count:,} left out; the first: {skipped.first})" if skipped.count else ""
        raise DataError(
            f"data.source={config.source!r}: {found}{left_out}; at least two different documents are needed, "
            "one to train on and one to hold out"
        )
    if not min(hashes) < config.val_fraction <= max(hashes):
        # so few documents that one side got none: the lowest hash is held out, or the highest trained on
        fraction = sorted(hashes)[1] if min(hashes) >= config.val_fraction else max(hashes)
        skipped, _ = _tokenise(folder, config, tokenizer, fraction, progress)
    if skipped.count:
        report(f"left out {skipped.count:,} documents that could not be read; the first: {skipped.first}")


def _tokenise(
    folder: Path, config: DataConfig, tokenizer: Tokenizer, val_fraction: float, progress: bool
) -> tuple[Skipped, set[float]]:
    """Fill the folder. Returns what was left out, and of the documents' hashes the two lowest and the highest."""
    for file in folder.iterdir():
        file.unlink()
    skipped = Skipped()
    extremes: set[float] = set()
    with ExitStack() as stack:
        advance = stack.enter_context(_bar(config)) if progress else None
        writers = {
            name: stack.enter_context(ShardWriter(folder, name, tokenizer.size, tokenizer.end_of_text)) for name in SPLITS
        }
        for batch in _in_batches(documents(config, skipped)):
            for document, ids in zip(batch, tokenizer.encode_batch([document.text for document in batch]), strict=True):
                data = document.text.encode()
                place = document_hash(data)
                extremes = _extremes(extremes | {place})
                writers["val" if place < val_fraction else "train"].append(ids, len(data))
                if advance:
                    advance(len(data))
        splits = {name: writer.finish() for name, writer in writers.items()}
    tokenizer.save(folder / TOKENIZER)
    Meta(
        dtype=writers["train"].dtype.name,
        vocab_size=tokenizer.size,
        end_of_text=tokenizer.end_of_text,
        tokenizer_sha256=file_sha256(folder / TOKENIZER),
        skipped=skipped.count,
        splits=splits,
    ).write(folder)
    return skipped, extremes


def _extremes(hashes: set[float]) -> set[float]:
    ordered = sorted(hashes)
    return {*ordered[:2], *ordered[-1:]}


def _in_batches(found: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in found:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.size > vocab_size:
        raise ConfigError(
            f"model.vocab_size={vocab_size}: the tokenizer has {tokenizer.size} ids; set --model.vocab_size {tokenizer.size}"
        )


@contextmanager
def _bar(config: DataConfig) -> Iterator[Callable[[int], None]]:
    """Bytes of text done, of all if that is known beforehand; gives the function that moves it."""
    files = [] if config.source.startswith(HUGGING_FACE) else source_files(config)
    is_compressed = any(file.suffix.lower() in PARQUET_SUFFIXES for file in files)
    total = None if is_compressed or not files else sum(file.stat().st_size for file in files)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("tokenising", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)


def _publish(aside: Path, folder: Path) -> None:
    """Synced, then renamed. Another process may have been first; theirs is as good."""
    for path in (*aside.iterdir(), aside):
        _sync(path)
    try:
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    _sync(folder.parent)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _clear_abandoned(folder: Path) -> None:
    """Remove what a preparation of the same corpus left when it was killed outright, a day ago or more."""
    for aside in folder.parent.glob(f".{folder.name}.*.partial"):
        try:
            newest = max(path.stat().st_mtime for path in (aside, *aside.iterdir()))
        except OSError:  # its owner has just published or removed it
            continue
        if time.time() - newest > ABANDONED_SECONDS:
            shutil.rmtree(aside, ignore_errors=True)
