"""Turn chunks of a source into tokens that can be appended to shards: the work of one process."""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkstemp
from typing import Any, NamedTuple

import numpy as np

from moebius.data.chunk import LATER_PART, Chunk
from moebius.data.held_out import document_hash
from moebius.data.shards import SPLITS, token_dtype
from moebius.data.sources import ReadingRules, texts_in
from moebius.data.text_files import NotText
from moebius.data.tokenizer import Tokenizer
from moebius.errors import DataError, StorageError

ENCODED_CHARACTERS = 2**20
"""Characters of text that are collected before they are tokenized."""
KEPT_BYTES = 2**22
"""Bytes of tokens that are kept in memory. The tokens of a large file are more, and come after
those of the files before it, so they wait on the disk."""
BLOCK_BYTES = 2**20
"""Bytes of waiting tokens that are read at once."""
WAITING = ".tokens"
"""Suffix of the files with tokens that wait."""


@dataclass(frozen=True)
class Rules:
    """What decides how chunks become tokens, apart from the tokenizer."""

    held_out_below: float
    """Hash below which a document is held out."""
    reading: ReadingRules = field(default_factory=ReadingRules)
    """How documents are read."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Rules":
        """Return the rules for which `asdict` returned these values."""
        return cls(values["held_out_below"], ReadingRules(**values["reading"]))


class Piece(NamedTuple):
    """A chunk, and what is known of the document whose part it is."""

    chunk: Chunk
    hash: float | None = None
    """The hash of the whole document, for a part of a long document."""
    num_bytes: int = 0
    """Bytes of the whole document for its first part, 0 for the later ones."""


class Refused(NamedTuple):
    """Documents in a piece that could not be read."""

    num_documents: int = 0
    reason: str = ""
    """Why the first of them could not be read. Empty if an earlier reason of the same source is
    known to the same process, because only the first one of a source is shown."""
    is_not_text: bool = False
    """Whether that one is no text either, whatever its format."""

    def first_reason(self) -> str:
        """Return why the first of them could not be read, as readers do."""
        return NotText(self.reason) if self.is_not_text else self.reason


@dataclass
class Packed:
    """The tokens of some pieces, and what was found in them."""

    documents: list[int] = field(default_factory=list)
    """Number of documents that begin in each piece."""
    num_bytes: list[int] = field(default_factory=list)
    """Bytes of UTF-8 text in these documents."""
    refused: list[Refused] = field(default_factory=list)
    """The documents in each piece that could not be read."""
    digest: str = ""
    """A hash of the hashes of all documents."""
    lossy: str = ""
    """The first text that the tokenizer does not give back, and what it becomes, or ""."""
    split_documents: dict[str, int] = field(default_factory=dict)
    """Number of documents that begin in each split."""
    split_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of UTF-8 text in these documents."""
    tokens: dict[str, bytes] = field(default_factory=dict)
    """The tokens of each split as shards have them, with a separator before each document."""
    files: dict[str, str] = field(default_factory=dict)
    """Files with the tokens of splits for which there are too many to be kept in memory."""

    def blocks(self, split: str) -> Iterator[bytes]:
        """Yield the tokens of a split, once: a file with them is removed. Raises OSError."""
        if split not in self.files:
            yield self.tokens[split]
            return
        path = Path(self.files[split])
        with path.open("rb") as file:
            path.unlink()
            while block := file.read(BLOCK_BYTES):
                yield block

    def to_wire(self) -> list[bytes]:
        """Return the contents as blocks of bytes."""
        values = {name: value for name, value in vars(self).items() if name != "tokens"}
        return [json.dumps(values).encode(), *(self.tokens[name] for name in SPLITS)]

    @classmethod
    def from_wire(cls, parts: list[bytes]) -> "Packed":
        """Return what `to_wire` was called for. Raises the error of `error_to_wire`."""
        values = json.loads(parts[0])
        if isinstance(values, list):
            code, message = values
            raise (StorageError if code == StorageError.exit_code else DataError)(message)
        values["refused"] = [Refused(*refused) for refused in values["refused"]]
        return cls(**values, tokens=dict(zip(SPLITS, parts[1:], strict=True)))


def error_to_wire(error: DataError | StorageError) -> list[bytes]:
    """Return an error in place of what would have been packed."""
    return [json.dumps([error.exit_code, str(error)]).encode()]


class Packer:
    """Packs pieces one batch after another.

    `folder` is where tokens wait on the disk if there are too many of them in a batch.
    """

    def __init__(self, tokenizer: Tokenizer, rules: Rules, folder: Path | None = None):
        self._tokenizer = tokenizer
        self._rules = rules
        self._folder = folder
        self._is_lossy = False
        self._has_refused = False

    def pack(self, pieces: Iterable[Piece], is_known: bool = False) -> Packed:
        """Return the tokens of the pieces, or none if the pieces were packed before.

        Raises DataError for an id outside the vocabulary or a separator inside a document,
        StorageError if the system does not let a file be read, and OSError if it does not let
        tokens wait on the disk.
        """
        packed = Packed()
        for counts in (packed.split_documents, packed.split_bytes):
            counts.update(dict.fromkeys(SPLITS, 0))
        hashes = hashlib.blake2b(digest_size=8)
        texts: list[_SplitText] = []
        num_characters = 0
        waiting = _Waiting(self._folder)
        for piece in pieces:
            packed.refused.append(Refused())
            packed.documents.append(0)
            packed.num_bytes.append(0)
            for text, hash_, size, is_first in self._found(piece, packed.refused):
                split = "val" if hash_ < self._rules.held_out_below else "train"
                if is_first:
                    hashes.update(struct.pack("=d", hash_))
                packed.documents[-1] += is_first
                packed.num_bytes[-1] += size
                packed.split_documents[split] += is_first
                packed.split_bytes[split] += size
                if not is_known:
                    texts.append(_SplitText(text, split, is_first))
                    num_characters += len(text)
                if num_characters >= ENCODED_CHARACTERS:
                    self._encode(texts, packed, waiting)
                    texts, num_characters = [], 0
        if texts:
            self._encode(texts, packed, waiting)
        packed.digest = hashes.hexdigest()
        packed.tokens, packed.files = waiting.end()
        return packed

    def _encode(self, texts: list["_SplitText"], packed: Packed, waiting: "_Waiting") -> None:
        """Add the tokens of some texts to those that wait."""
        plain = [text.text for text in texts]
        ids_of_texts = self._tokenizer.encode_batch(plain)
        if not self._is_lossy:  # what comes later is not the first text that is lost
            packed.lossy = self._tokenizer.first_loss(plain, ids_of_texts)
            self._is_lossy = bool(packed.lossy)
        for name in SPLITS:
            chosen = [
                (ids, text.is_first)
                for ids, text in zip(ids_of_texts, texts, strict=True)
                if text.split == name
            ]
            waiting.add(name, self._joined(chosen))

    def _found(
        self, piece: Piece, refused: list[Refused]
    ) -> Iterator[tuple[str, float, int, bool]]:
        """Yield each text in a piece, its hash, its bytes, and whether it begins a document.

        What cannot be read is counted in the last element of `refused`.
        """
        if piece.hash is not None:
            is_first = piece.chunk.syntax != LATER_PART
            yield piece.chunk.raw.decode(), piece.hash, piece.num_bytes, is_first
            return

        def refuse(reason: str) -> None:
            if not self._has_refused:
                self._has_refused = True
                refused[-1] = Refused(0, str(reason), isinstance(reason, NotText))
            refused[-1] = refused[-1]._replace(num_documents=refused[-1].num_documents + 1)

        chunk = piece.chunk.uncounted() if self._has_refused else piece.chunk
        for text, _ in texts_in(chunk, self._rules.reading, refuse):
            hash_, num_bytes = document_hash(text)
            for number, part in enumerate(self._tokenizer.pieces(text)):
                yield part, hash_, 0 if number else num_bytes, number == 0

    def _joined(self, chosen: list[tuple[np.ndarray, bool]]) -> bytes:
        """Return the tokens of some texts, with a separator before each that begins a document."""
        separator = np.array([self._tokenizer.end_of_text], dtype=np.uint32)
        arrays = [array for ids, is_first in chosen for array in ([separator] * is_first + [ids])]
        tokens = np.concatenate(arrays) if arrays else separator[:0]
        if tokens.size and (worst := int(tokens.max())) >= self._tokenizer.size:
            raise DataError(
                f"token id {worst} is outside the vocabulary of {self._tokenizer.size}; "
                f"set --model.vocab_size {worst + 1}"
            )
        num_separators = int((tokens == separator).sum())
        if num_separators != sum(is_first for _, is_first in chosen):
            raise DataError(
                f"the tokenizer turned text into its end-of-text id {separator[0]}; "
                "use a tokenizer whose end of text is a special token"
            )
        return tokens.astype(token_dtype(self._tokenizer.size)).tobytes()


class _SplitText(NamedTuple):
    """A text, the split that it belongs to, and whether it begins a document."""

    text: str
    split: str
    is_first: bool


class _Waiting:
    """The tokens of a batch that have been made so far, in memory or on the disk."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._parts: dict[str, list[bytes]] = {name: [] for name in SPLITS}
        self._num_bytes = 0
        self._files: dict[str, str] = {}

    def add(self, split: str, tokens: bytes) -> None:
        """Append tokens to those of a split. Raises OSError."""
        self._parts[split].append(tokens)
        self._num_bytes += len(tokens)
        if self._num_bytes > KEPT_BYTES:
            self._write()

    def end(self) -> tuple[dict[str, bytes], dict[str, str]]:
        """Return the tokens of each split that are in memory, and the files with all others."""
        if self._files:
            self._write()
        return {name: b"".join(parts) for name, parts in self._parts.items()}, self._files

    def _write(self) -> None:
        for name, parts in self._parts.items():
            if name not in self._files:
                descriptor, self._files[name] = mkstemp(WAITING, dir=self._folder)
                os.close(descriptor)
            with Path(self._files[name]).open("ab") as file:
                file.writelines(parts)
            parts.clear()
        self._num_bytes = 0
