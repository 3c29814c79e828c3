"""The parts in which a source is read, before its documents are taken apart."""

from typing import NamedTuple

from moebius.data.long_text import LongText

DOCUMENT, TEXT_PIECE, LINES = "document", "piece of a text file", "JSON lines"
LATER_PART = "part of a long document"
REFUSAL, NOT_TEXT = "refusal", "refusal of what is not text"


class Chunk(NamedTuple):
    """A part of a source: one document, or whole lines with any number of documents."""

    syntax: str
    """How the documents are found: `DOCUMENT` (UTF-8 of one document that was found before),
    `TEXT_PIECE` (one document that may not be UTF-8) or `LINES`. `LATER_PART` is what goes on with
    the document before it; `REFUSAL` and `NOT_TEXT` stand in for one that could not be read."""
    data: bytes | bytearray | LongText
    """The contents; a long text only for a `DOCUMENT`."""
    origin: str
    """The name of the file, for messages, or the reason of a refusal."""
    offset: int = 0
    """Bytes of the file before the contents."""
    line: int = 0
    """Lines of the file before the contents."""

    @property
    def raw(self) -> bytes | bytearray:
        """The contents, which are no long text."""
        assert not isinstance(self.data, LongText)
        return self.data
