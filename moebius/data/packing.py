"""Turn chunks of a source into tokens that can be appended to shards: the work of one process."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from moebius.data.chunk import LATER_PART, Chunk
from moebius.data.held_out import document_hash
from moebius.data.shards import SPLITS, token_dtype
from moebius.data.sources import texts_in
from moebius.data.text_files import NotText
from moebius.data.tokenizer import Tokenizer
from moebius.errors import DataError


@dataclass(frozen=True)
class Rules:
    """What decides how chunks become tokens, apart from the tokenizer."""

    held_out_below: float
    """Hash below which a document is held out."""
    text_field: str = "text"
    """The field that holds the text in rows."""
    keeps_mark: bool = False
    """Whether a byte order mark at the start of a text file counts as text."""


class Piece(NamedTuple):
    """A chunk, and what is known of the document whose part it is."""

    chunk: Chunk
    hash: float | None = None
    """The hash of the whole document, for a part of a long document."""
    num_bytes: int = 0
    """Bytes of the whole document for its first part, 0 for the later ones."""


@dataclass
class Packed:
    """The tokens of some pieces, and what was found in them."""

    documents: list[int] = field(default_factory=list)
    """Number of documents that begin in each piece."""
    num_bytes: list[int] = field(default_factory=list)
    """Bytes of UTF-8 text in these documents."""
    refused: list[list[tuple[str, bool]]] = field(default_factory=list)
    """Why documents in each piece could not be read, and whether they are no text either."""
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

    def reasons(self, number: int) -> Iterator[str]:
        """Yield why documents in a piece could not be read."""
        for reason, is_not_text in self.refused[number]:
            yield NotText(reason) if is_not_text else reason

    def to_wire(self) -> list[bytes]:
        """Return the contents as blocks of bytes."""
        values = {name: value for name, value in vars(self).items() if name != "tokens"}
        return [json.dumps(values).encode(), *(self.tokens[name] for name in SPLITS)]

    @classmethod
    def from_wire(cls, parts: list[bytes]) -> "Packed":
        """Return what `to_wire` was called for. Raises DataError if the pieces had an error."""
        values = json.loads(parts[0])
        if isinstance(values, str):
            raise DataError(values)
        return cls(**values, tokens=dict(zip(SPLITS, parts[1:], strict=True)))


class Packer:
    """Packs pieces one batch after another."""

    def __init__(self, tokenizer: Tokenizer, rules: Rules):
        self._tokenizer = tokenizer
        self._rules = rules
        self._is_lossy = False

    def pack(self, pieces: Sequence[Piece], is_known: bool = False) -> Packed:
        """Return the tokens of the pieces, or none if the pieces were packed before.

        Raises DataError for an id outside the vocabulary or a separator inside a document.
        """
        packed = Packed(tokens=dict.fromkeys(SPLITS, b""))
        texts: list[str] = []
        splits: list[str] = []
        begins: list[bool] = []
        hashes: list[float] = []
        for counts in (packed.split_documents, packed.split_bytes):
            counts.update(dict.fromkeys(SPLITS, 0))
        for piece in pieces:
            packed.refused.append([])
            documents = num_bytes = 0
            for text, hash_, size, is_first in self._found(piece, packed.refused[-1]):
                split = "val" if hash_ < self._rules.held_out_below else "train"
                texts.append(text)
                splits.append(split)
                begins.append(is_first)
                hashes += [hash_] * is_first
                documents += is_first
                num_bytes += size
                packed.split_documents[split] += is_first
                packed.split_bytes[split] += size
            packed.documents.append(documents)
            packed.num_bytes.append(num_bytes)
        packed.digest = hashlib.blake2b(np.array(hashes).tobytes(), digest_size=8).hexdigest()
        if not is_known:
            ids_of_texts = self._tokenizer.encode_batch(texts)
            if not self._is_lossy:  # what comes later is not the first text that is lost
                packed.lossy = self._tokenizer.first_loss(texts, ids_of_texts)
                self._is_lossy = bool(packed.lossy)
            for name in SPLITS:
                chosen = [
                    (ids, is_first)
                    for ids, is_first, split in zip(ids_of_texts, begins, splits, strict=True)
                    if split == name
                ]
                packed.tokens[name] = self._joined(chosen)
        return packed

    def _found(
        self, piece: Piece, refused: list[tuple[str, bool]]
    ) -> Iterator[tuple[str, float, int, bool]]:
        """Yield each text in a piece, its hash, its bytes, and whether it begins a document."""
        if piece.hash is not None:
            assert isinstance(piece.chunk.data, bytes)
            is_first = piece.chunk.syntax != LATER_PART
            yield piece.chunk.data.decode(), piece.hash, piece.num_bytes, is_first
            return

        def refuse(reason: str) -> None:
            refused.append((str(reason), isinstance(reason, NotText)))

        rules = self._rules
        for text, _ in texts_in(piece.chunk, rules.text_field, rules.keeps_mark, refuse):
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
