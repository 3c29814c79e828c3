"""A prepared corpus: all that training and evaluation need to know about the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from moebius.cost.units import counted
from moebius.data.cache import digest
from moebius.data.stream import TokenStream
from moebius.data.text_bytes import TextBytes
from moebius.data.tokenizer import Tokenizer

IDENTITY_VERSION = 3
"""Version in the hash that identifies a corpus. It does not change with the format of the shards,
because checkpoints contain the hash."""


@dataclass(frozen=True)
class Corpus:
    """The token streams of all sources of a configuration, and their tokenizer."""

    names: tuple[str, ...]
    """Name of each source, as data.source has it."""
    folders: list[Path]
    """Folder in the cache with the token shards of each source."""
    tokenizer: Tokenizer
    """Tokenizer with which all sources were tokenized."""
    train: TokenStream
    """Tokens of the training documents, one part per source."""
    val: TokenStream
    """Tokens of the held-out documents, one part per source."""
    separator: int | None
    """Id of the token with which each document begins, if attention stays inside a document
    (data.document_masking). None if attention may cross documents."""
    skipped: int
    """Number of documents that were left out because they could not be read."""
    identity: str
    """Hash of the tokens and the sources' weights. It does not depend on the folders' names."""
    checksums: tuple[str, ...] = ()
    """SHA-256 of each shard, in order. Equal tokens have equal ones."""
    lossy: str = ""
    """The first text that the tokenizer does not give back and what it becomes, for a message.
    Bits per byte mean nothing unless this is empty: the lost text costs nothing to predict."""
    notes: tuple[str, ...] = ()
    """Lines about what was read, what was passed over, and why, for the user."""

    @property
    def folder(self) -> Path:
        """The folder of the first source."""
        return self.folders[0]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, separators included, over all training and held-out text.

        A sample of the text has its own number of bytes, which `text_bytes` counts.
        """
        num_bytes = self.train.num_bytes + self.val.num_bytes
        return num_bytes / (len(self.train) + len(self.val))

    @cached_property
    def text_bytes(self) -> TextBytes:
        """Counts the bytes of text that tokens stand for."""
        return TextBytes(self.tokenizer)

    def summary(self) -> str:
        """Return the sizes of the corpus as one line for the user."""
        sources = f", {len(self.folders)} sources" if len(self.folders) > 1 else ""
        left_out = f", {counted(self.skipped, 'document')} left out" if self.skipped else ""
        return (
            f"{counted(len(self.train), 'training token')} in "
            f"{counted(self.train.num_documents, 'document')}, "
            f"{counted(len(self.val), 'held-out token')} in {self.val.num_documents:,}; "
            f"{counted(self.tokenizer.size, 'token id')}, {self.bytes_per_token:.2f} bytes per "
            f"token{sources}{left_out}"
        )


def identity_of(checksums: Sequence[str], weights: Sequence[float]) -> str:
    """Return `Corpus.identity` of tokens with these checksums, mixed with these weights."""
    return digest([list(checksums), list(weights)], IDENTITY_VERSION)
