"""Pieces become tokens, the same in any process, and nothing wrong is packed."""

import numpy as np
import pytest

from moebius.config import DataConfig
from moebius.data.chunk import DOCUMENT, LATER_PART, LINES, NOT_TEXT, REFUSAL, TEXT_PIECE, Chunk
from moebius.data.held_out import document_hash
from moebius.data.packing import Packed, Packer, Piece, Rules, error_to_wire
from moebius.data.text_files import NotText
from moebius.data.tokenizer import Tokenizer, prepare_tokenizer
from moebius.errors import DataError, StorageError


@pytest.fixture
def tokenizer() -> Tokenizer:
    return prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])


def some_pieces() -> list[Piece]:
    lines = b'{"text": "one"}\n\nbad\n{"text": ""}\n{"text": "two"}\n'
    return [
        Piece(Chunk(LINES, lines, "rows", offset=100, line=7)),
        Piece(Chunk(DOCUMENT, "thr\u00e9e".encode(), "table")),
        Piece(Chunk(DOCUMENT, b"four, ", "table"), 0.9, 11),
        Piece(Chunk(LATER_PART, b"later", "table"), 0.9),
        Piece(Chunk(REFUSAL, b"", "row 3")),
        Piece(Chunk(NOT_TEXT, b"", "row 4")),
        Piece(Chunk(TEXT_PIECE, b"\xff", "file", offset=5)),
    ]


def test_documents_are_packed_by_split_in_order_with_separators(tokenizer):
    packed = Packer(tokenizer, Rules(0.5)).pack(some_pieces())
    assert packed.documents == [2, 1, 1, 0, 0, 0, 0]
    assert packed.num_bytes == [6, 6, 11, 0, 0, 0, 0]
    expected: dict[str, list[int]] = {"train": [], "val": []}
    for text in ("one", "two", "thr\u00e9e"):
        name = "val" if document_hash(text)[0] < 0.5 else "train"
        expected[name] += [tokenizer.end_of_text, *tokenizer.encode(text)]
    expected["train"] += [tokenizer.end_of_text, *tokenizer.encode("four, later")]
    for name, tokens in packed.tokens.items():
        assert np.frombuffer(tokens, "<u2").tolist() == expected[name]
        assert packed.split_documents[name] == expected[name].count(tokenizer.end_of_text)
    assert sum(packed.split_bytes.values()) == 23
    assert [refused.num_documents for refused in packed.refused] == [1, 0, 0, 0, 1, 1, 1]
    again = Packed.from_wire(packed.to_wire())
    assert again == packed


@pytest.mark.parametrize(
    ("number", "reason", "is_not_text"),
    [
        (0, "rows:10: column 1 is not JSON (Expecting value)", False),
        (4, "row 3", False),
        (5, "row 4", True),
        (6, "file: byte offset 5 is not UTF-8 (0xff)", True),
    ],
)
def test_the_first_reason_of_a_source_is_known(tokenizer, number, reason, is_not_text):
    packed = Packer(tokenizer, Rules(0.5)).pack(some_pieces()[number:])
    first = packed.refused[0].first_reason()
    assert (first, isinstance(first, NotText)) == (reason, is_not_text)
    assert not any(refused.reason for refused in packed.refused[1:])


def test_pieces_that_are_known_are_only_hashed(tokenizer, monkeypatch):
    whole = Packer(tokenizer, Rules(0.5)).pack(some_pieces())
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    known = Packer(tokenizer, Rules(0.5)).pack(some_pieces(), is_known=True)
    assert (known.digest, known.documents, known.num_bytes) == (
        whole.digest,
        whole.documents,
        whole.num_bytes,
    )
    assert not any(known.tokens.values())
    other = Packer(tokenizer, Rules(0.5)).pack(some_pieces()[1:], is_known=True)
    assert other.digest != known.digest


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (257, "token id 257 is outside the vocabulary of 257; set --model.vocab_size 258"),
        (65_536 + 5, "token id 65541 is outside the vocabulary of 257"),
        (0, "the tokenizer turned text into its end-of-text id 0"),
    ],
)
def test_a_wrong_id_is_never_packed(tokenizer, monkeypatch, token, message):
    wrong = [np.array([5, token, 7], dtype=np.uint32)]
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: wrong)
    with pytest.raises(DataError, match=message):
        Packer(tokenizer, Rules(0.5)).pack([Piece(Chunk(DOCUMENT, b"text", ""))])


@pytest.mark.parametrize("kind", [DataError, StorageError])
def test_an_error_in_another_process_is_the_same_error(kind):
    with pytest.raises(kind, match="wrong"):
        Packed.from_wire(error_to_wire(kind("wrong")))
