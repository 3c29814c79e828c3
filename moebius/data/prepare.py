"""From a source to token shards, once: a second run finds them in the cache."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from moebius.config import DataConfig
from moebius.data.shards import FORMAT_VERSION, ShardWriter, TokenStream, write_meta
from moebius.data.sources import Document, Skipped, documents, source_files
from moebius.data.tokenizer import Tokenizer, prepare_tokenizer
from moebius.errors import ConfigError, DataError, StorageError

BATCH_CHARACTERS = 4_000_000  # tokenised at once: enough for all cores, little in memory
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Corpus:
    """A prepared source."""

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


def prepare(
    config: DataConfig, vocab_size: int, report: Callable[[str], None] = lambda line: None, progress: bool = False
) -> Corpus:
    """The corpus of a configuration, from the cache or made now.

    A document is stored as the end-of-text token and then its text: its first token is predicted too, and its end is the
    next document's separator. Which documents are held out follows from a hash of each alone, so equal documents share a
    side and the split is the same on any machine. Raises DataError, StorageError, ConfigError.
    """
    cache = Path(config.cache).expanduser()
    folder = cache / cache_key(config, vocab_size)
    if not folder.is_dir():
        report(f"preparing {config.source} (kept in {folder})")
        aside = cache / f".{folder.name}.{os.getpid()}.partial"
        try:
            aside.mkdir(parents=True)
            _build(config, vocab_size, aside, report, progress)
            _publish(aside, folder)
        except OSError as error:
            raise StorageError(
                f"{folder}: {error.strerror or error}; set --data.cache to a folder that can be written"
            ) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    _check_size(tokenizer, vocab_size)
    skipped = int(json.loads((folder / "skipped.json").read_text())["count"])
    return Corpus(folder, tokenizer, TokenStream(folder, "train"), TokenStream(folder, "val"), skipped)


def cache_key(config: DataConfig, vocab_size: int) -> str:
    """Of everything the shards depend on: settings, tokenizer file, and each source file's name, size and time."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("cache", "document_masking")}
    files = [] if config.source.startswith("hf:") else source_files(config)
    if config.tokenizer not in ("bpe", "bytes"):
        files.append(Path(config.tokenizer).expanduser())
    try:
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from None
    learned_ids = (config.vocab_size or vocab_size) if config.tokenizer == "bpe" else 0
    identity = json.dumps([FORMAT_VERSION, settings, learned_ids, stats])
    return hashlib.sha256(identity.encode()).hexdigest()[:20]


def _check_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.size > vocab_size:
        raise ConfigError(
            f"model.vocab_size={vocab_size}: the tokenizer has {tokenizer.size} ids; set --model.vocab_size {tokenizer.size}"
        )


def _build(config: DataConfig, vocab_size: int, folder: Path, report: Callable[[str], None], progress: bool) -> None:
    tokenizer = prepare_tokenizer(config, vocab_size, (document.text for document in documents(config, Skipped())))
    _check_size(tokenizer, vocab_size)
    skipped, hashes = _tokenise(config, tokenizer, folder, config.val_fraction, progress)
    if not hashes:
        raise DataError(f"data.source={config.source!r}: no text in it")
    if len(hashes) < 2:
        raise DataError(
            f"data.source={config.source!r}: one document only; two different ones are needed, to train and to hold out"
        )
    if not min(hashes) < config.val_fraction <= max(hashes):
        # so few documents that one side got none: the lowest hash is held out, or the highest trained on
        fraction = sorted(hashes)[1] if min(hashes) >= config.val_fraction else max(hashes)
        skipped, _ = _tokenise(config, tokenizer, folder, fraction, progress)
    if skipped.count:
        report(f"left out {skipped.count:,} documents that could not be read; the first: {skipped.first}")
    (folder / "skipped.json").write_text(json.dumps({"count": skipped.count, "first": skipped.first}))
    tokenizer.save(folder / "tokenizer.json")


def _tokenise(
    config: DataConfig, tokenizer: Tokenizer, folder: Path, val_fraction: float, progress: bool
) -> tuple[Skipped, set[float]]:
    """Write both splits. Returns what was left out and the two lowest and the highest hashes seen."""
    skipped = Skipped()
    writers = {split: ShardWriter(folder, split, tokenizer.size) for split in SPLITS}
    extremes: set[float] = set()
    with _bar(progress) as bar:
        task = bar.add_task("tokenising", total=_total_bytes(config)) if bar else None
        for batch in _in_batches(documents(config, skipped)):
            for document, ids in zip(batch, tokenizer.encode_batch([document.text for document in batch]), strict=True):
                data = document.text.encode()
                place = document_hash(data)
                extremes = _extremes(extremes | {place})
                writers["val" if place < val_fraction else "train"].append([tokenizer.end_of_text, *ids], len(data))
                if bar and task is not None:
                    bar.advance(task, len(data))
    write_meta(folder, tokenizer.size, {name: writer.close() for name, writer in writers.items()})
    return skipped, extremes


def document_hash(data: bytes) -> float:
    """A number from 0 to 1 that depends on the document's bytes alone."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest()) / 2**48


def _extremes(hashes: set[float]) -> set[float]:
    ordered = sorted(hashes)
    return {*ordered[:2], ordered[-1]}


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


def _total_bytes(config: DataConfig) -> float | None:
    files = [] if config.source.startswith("hf:") else source_files(config)
    plain = all(file.suffix.lower() != ".parquet" for file in files)
    return sum(file.stat().st_size for file in files) if files and plain else None


def _bar(progress: bool) -> AbstractContextManager[Progress | None]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, transient=True) if progress else nullcontext()


def _publish(aside: Path, folder: Path) -> None:
    """Synced, then renamed: a folder of its final name is whole. Another process may have been first; theirs is as good."""
    for file in aside.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    try:
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
