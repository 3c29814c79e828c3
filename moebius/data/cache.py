"""The cache: where prepared tokenizers and token shards are kept, and under which names.

A name is a hash of everything that the contents depend on. The same settings therefore find what
was prepared before, and any change leads to a new preparation.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from moebius.config import DataConfig
from moebius.config.paths import expanded
from moebius.data.formats import READING_VERSION
from moebius.data.inventory import STDLIB, Inventory, on_hub
from moebius.data.shards import FORMAT_VERSION, file_sha256
from moebius.data.source_names import weighted_sources
from moebius.data.tokenizer import tokenizer_file
from moebius.errors import StorageError

ABANDONED_SECONDS = 7 * 24 * 3600
"""Time after which the remains of a killed process are removed. Until then, the next preparation
of the same source continues from them."""


def cache_folder(config: DataConfig) -> Path:
    """Return the folder of the cache, data.cache."""
    return expanded(config.cache)


def source_key(config: DataConfig, tokenizer: str, listed: Inventory) -> str:
    """Return the name of the folder for the shards of a single source.

    It depends on the settings, on the names and contents of the files in `listed`, the source's
    inventory, and on `tokenizer`, the key of the tokenizer. It does not depend on the folder in
    which the files are. A dataset on the Hugging Face hub is identified by its name alone, because
    asking for its revision would need the network at each start.
    """
    settings = _settings(config, "errors", "format", "text_field", "val_fraction")
    return digest([settings, _contents(config, listed), tokenizer])


def tokenizer_key(
    config: DataConfig, vocab_size: int, listed: Mapping[DataConfig, Inventory]
) -> str:
    """Return a name for the tokenizer of a configuration and a model of `vocab_size` ids.

    A BPE depends on the sources and their weights, a tokenizer.json on its contents; the name is
    empty if there is no such file. `listed` has the inventory of each source. Raises StorageError
    for a file that cannot be read.
    """
    if config.tokenizer == "bytes":
        return "bytes"
    if config.tokenizer != "bpe":
        return file_sha256(tokenizer_file(config)) if tokenizer_file(config).is_file() else ""
    sources = [
        (weight, _contents(single, listed[single]))
        for single, weight in weighted_sources(config).items()
    ]
    settings = _settings(config, "errors", "format", "text_field")
    return digest([settings, config.vocab_size or vocab_size, sources])


def digest(identity: object, version: int = FORMAT_VERSION) -> str:
    """Return a short hash of JSON values and of a version, by default of the shards' format."""
    return hashlib.sha256(json.dumps([version, identity]).encode()).hexdigest()[:20]


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


def _contents(config: DataConfig, listed: Inventory) -> list[object]:
    """Return what the text of a source depends on: its files' names and contents, in order.

    Of the files that are passed over or damaged only the number matters, because it is reported.
    The standard library is read by rules of its own, unlike a copy of its files.
    """
    if not listed.files and on_hub(config):
        return [config.source]
    try:
        hashes = listed.content_hashes()
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from None
    named = [
        (file.name.rpartition("/")[2], file.format, hash_)
        for file, hash_ in zip(listed.files, hashes, strict=True)
    ]
    tally = listed.tally
    passed_over = sorted((why, skipped.count) for why, skipped in tally.passed_over.items())
    rules = config.source if on_hub(config) or config.source == STDLIB else ""
    return [READING_VERSION, rules, named, passed_over, tally.count]
