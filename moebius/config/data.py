"""The `data` section: the settings of the text that a run is trained on."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from moebius.config.fields import (
    FilledText,
    NonNegativeInt,
    at_least,
    between,
    check_fields,
    inside,
    shown,
)
from moebius.errors import ConfigError

SECRET_IN_URL = re.compile(r"://([^/,]*@|[^,]*\?)")
"""Matches a URL with a user name and password, or with a query, which may hold a signature."""
MOST_WORKERS = 4096
"""Largest number of processes that tokenize, more than any machine has cores."""
FRAGMENT_IN_URL = re.compile(r"https?://[^,]*#")
"""Matches a web URL with a fragment, which no server gets. It would hide the file's suffix."""
FEWEST_BPE_IDS = 257
"""Ids of a BPE without merges: the 256 bytes and the end of text."""
MOST_BPE_IDS = 2**24
"""Most ids that a BPE learns, many more than any text has a use for."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text that is trained on, and how it becomes tokens."""

    source: FilledText = "python-stdlib"
    """Where the text is: a file, folder, glob or URL (plain text, JSON lines, JSON, CSV, Parquet
    or Arrow, compressed or not), `hf:NAME[:SUBSET]` for a Hugging Face dataset, or
    `python-stdlib`. Several are separated by commas."""
    format: Literal["auto", "text"] = "auto"
    """`auto`: a file's name and first bytes decide its format. `text`: JSON and CSV are read as
    plain text, as in a folder of source code."""
    weights: Annotated[float | tuple[float, ...], at_least(0)] = 1.0
    """Each source's share of the training sequences; they need not sum to 1. One number means
    equal shares."""
    text_field: FilledText = "text"
    """Name of the field or column that holds the text in JSON, CSV, Parquet, Arrow and Hugging
    Face data."""
    errors: Literal["stop", "skip"] = "stop"
    """What to do about a document that cannot be read: stop and name its place, or skip and count
    it."""
    tokenizer: FilledText = "bpe"
    """`bpe` (byte-level, trained on the source), `bytes`, the path of a tokenizer.json, or
    `hf:NAME` for the one of a model on the Hugging Face hub."""
    vocab_size: NonNegativeInt = 0
    """Number of tokens that the BPE learns. 0 means model.vocab_size."""
    val_fraction: Annotated[float, inside(0, 1)] = 0.01
    """Share of the documents that is held out for evaluation. A hash of each document decides. A
    source holds out at least 16 of its documents, or a tenth if it has fewer than 160."""
    document_masking: bool = True
    """Keep attention within a document where several are packed into one sequence."""
    cache: FilledText = "~/.cache/moebius"
    """Folder for prepared tokenizers and token shards, and for what was downloaded from URLs."""
    workers: Annotated[int, between(0, MOST_WORKERS)] = 0
    """Number of processes that tokenize. The result does not depend on it. 0 means one per
    core."""

    def __post_init__(self) -> None:
        check_fields("data", self)
        if SECRET_IN_URL.search(self.source):
            raise ConfigError(
                "data.source: contains a URL with a password or a query, which would be stored "
                "in config.toml; pass credentials through the environment instead"
            )
        if FRAGMENT_IN_URL.search(self.source):
            raise ConfigError(
                "data.source: contains a web URL with a fragment; leave out # and "
                "what follows it (or write %23 for a # in a name)"
            )
        if self.tokenizer == "bpe" and self.vocab_size:
            check_bpe("data.vocab_size", self.vocab_size)
        num_sources = len(self.source.split(","))
        weights = (
            self.weights if isinstance(self.weights, tuple) else (self.weights,) * num_sources
        )
        if len(weights) != num_sources or not any(weights):
            raise ConfigError(
                f"data.weights={shown(self.weights)}: must be one number for each of the "
                f"{num_sources} sources, not all 0"
            )


def check_bpe(name: str, num_ids: int) -> None:
    """Raise ConfigError if the setting `name` gives a BPE too few ids, or absurdly many."""
    if num_ids < FEWEST_BPE_IDS:
        raise ConfigError(
            f"{name}={num_ids}: data.tokenizer=bpe needs at least {FEWEST_BPE_IDS} ids, one for "
            "each byte and one for the end of text"
        )
    if num_ids > MOST_BPE_IDS:
        raise ConfigError(
            f"{name}={num_ids}: data.tokenizer=bpe learns at most {MOST_BPE_IDS} ids; set "
            "--data.vocab_size"
        )
