"""The cache: where prepared tokenizers and token shards are kept, and under which names.

A name is a hash of everything that the contents depend on. The same settings therefore find what
was prepared before, and any change leads to a new preparation.
"""

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from moebius.config import DataConfig
from moebius.config.paths import expanded
from moebius.data.shards import FORMAT_VERSION, file_sha256
from moebius.data.sources import source_files, weighted_sources
from moebius.data.tokenizer import tokenizer_file
from moebius.errors import StorageError

ABANDONED_SECONDS = 7 * 24 * 3600
"""Time after which the remains of a killed process are removed. Until then, the next preparation
of the same source continues from them."""


def cache_folder(config: DataConfig) -> Path:
    """Return the folder of the cache, data.cache."""
    return expanded(config.cache)


def source_key(config: DataConfig, tokenizer: str) -> str:
    """Return the name of the folder for the shards of a single source.

    It depends on the settings, on each file's name, size and modification time, and on
    `tokenizer`, the key of the tokenizer. A dataset on the Hugging Face hub is identified by its
    name alone, because asking for its revision would need the network at each start.
    """
    return digest(
        [
            _settings(config, "errors", "source", "text_field", "val_fraction"),
            _file_states(config),
            tokenizer,
        ]
    )


def tokenizer_key(config: DataConfig, vocab_size: int) -> str:
    """Return a name for the tokenizer of a configuration and a model of `vocab_size` ids.

    A BPE depends on the sources and their weights, a tokenizer.json on its contents; the name is
    empty if there is no such file. Raises DataError, StorageError or ConfigError for sources that
    cannot be found.
    """
    if config.tokenizer == "bytes":
        return "bytes"
    if config.tokenizer != "bpe":
        return file_sha256(tokenizer_file(config)) if tokenizer_file(config).is_file() else ""
    sources = {
        single.source: (weight, _file_states(single))
        for single, weight in weighted_sources(config).items()
    }
    return digest(
        [_settings(config, "errors", "text_field"), config.vocab_size or vocab_size, sources]
    )


def digest(identity: object) -> str:
    """Return a short hash of JSON values and of the version of the shards' format."""
    return hashlib.sha256(json.dumps([FORMAT_VERSION, identity]).encode()).hexdigest()[:20]


def sync(path: Path) -> None:
    """Make sure that a file's contents, or a folder's entries, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(cache: Path) -> None:
    """Remove what preparations and downloads left behind if they were killed over a week ago."""
    for partial in (*cache.glob(".*.partial"), *cache.glob("downloads/.*.partial")):
        try:
            newest = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
        except OSError:  # another process has just renamed or removed it, or it is a file
            continue
        if time.time() - newest > ABANDONED_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


def _settings(config: DataConfig, *names: str) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if name in names}


def _file_states(config: DataConfig) -> list[tuple[str, int, int]]:
    """Return each file of a source as its path, size in bytes and modification time in ns."""
    try:
        return [
            (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
            for file in source_files(config)
        ]
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from None
