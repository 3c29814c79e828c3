"""Read a text file as one document, or as several if it is long or the only file of its source."""

from collections.abc import Callable, Iterator
from io import BufferedReader

from moebius.data.chunk import TEXT_PIECE, Chunk
from moebius.data.compression import is_damage
from moebius.data.formats import SourceFile
from moebius.data.messages import one_line

LONGEST_DOCUMENT = 2**20
"""Bytes above which a file is cut into several documents."""
PIECE_BYTES = 2**16
"""Length of the documents that a long file is cut into."""
FEWEST_PIECES = 16
"""Number of documents that a short file is cut into if it is the whole source, so that one of them
can be held out."""
SHORTEST_PIECE = 256
"""Smallest number of bytes in a document that a short file is cut into."""
MARK = "\ufeff"
"""The byte order mark, with which Windows tools begin a file. It is not part of the text."""


class NotText(str):
    """A reason for which contents cannot be read as plain text either, whatever their format."""

    __slots__ = ()


Refuse = Callable[[str], None]
"""Function that is called with the reason when a document cannot be read.

It either raises an error, or it returns and the document is left out."""


def text_chunks(file: SourceFile, refuse: Refuse, is_whole_source: bool) -> Iterator[Chunk]:
    """Yield the bytes of each document in a text file.

    A file is one document, unless it is larger than 1 MiB or the whole source. Such a file is cut
    after line ends into documents of 64 KiB (or of 1/16 of the file, if that is less). Nothing
    marks documents in it, and uncut it could neither be held out in part nor be tokenized in
    bounded memory. The cuts depend only on the file's contents without their compression, so they
    are the same on any machine. Raises OSError.
    """
    offset = 0
    try:
        with file.open() as opened:
            piece = opened.read(LONGEST_DOCUMENT + 1)
        if len(piece) <= LONGEST_DOCUMENT and not is_whole_source:
            yield Chunk(TEXT_PIECE, piece, file.name)
            return
        length = max(SHORTEST_PIECE, min(PIECE_BYTES, len(piece) // FEWEST_PIECES))
        with file.open() as opened:
            for piece in _cut(opened, length):
                yield Chunk(TEXT_PIECE, piece, file.name, offset)
                offset += len(piece)
    except Exception as error:
        if not is_damage(error):
            raise
        refuse(damage(file, error))


def piece_text(chunk: Chunk, keeps_mark: bool, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """Yield the text and the origin (file and byte offset) of a document in a text file.

    A byte order mark at the start of a file is left out unless `keeps_mark`. A document that is
    not UTF-8 or has a zero byte is reported to `refuse` with the offset.
    """
    name, offset = chunk.origin, chunk.offset
    text = decode(chunk.raw, name, offset, refuse)
    if text is not None and "\0" in text:
        # The file would be passed over as binary, but for its first bytes.
        place = offset + chunk.raw.index(0)
        refuse(NotText(f"{name}: byte offset {place} is a zero byte"))
    elif text is not None:
        text = text if offset or keeps_mark else text.removeprefix(MARK)
        yield text, f"{name}: byte {offset}" if offset else name


def damage(file: SourceFile, error: BaseException, place: str = "") -> NotText:
    """Return the message for compressed data that is damaged or incomplete."""
    names = ", ".join(file.format.compressions) or "not compressed"
    return NotText(f"{file.name}: damaged or incomplete ({names}: {one_line(error)}){place}")


def decode(data: bytes | bytearray, name: str, offset: int, refuse: Refuse) -> str | None:
    """Return the text of UTF-8 data, or None if it is invalid and `refuse` did not raise.

    For the message, `name` is the file that the data comes from, and `offset` is where the data
    begins in it.
    """
    # Opening the file as text instead would translate line ends and so change byte offsets.
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place, byte = offset + error.start, data[error.start]
        refuse(NotText(f"{name}: byte offset {place} is not UTF-8 (0x{byte:02x})"))
        return None


def _cut(opened: BufferedReader, length: int) -> Iterator[bytes]:
    while piece := opened.read(length):
        piece += opened.readline(length)
        # A line may go on for gigabytes, so lines are cut too, but not inside a UTF-8 character,
        # which has at most 3 continuation bytes.
        for _ in range(3):
            following = opened.peek(1)[:1]
            if not b"\x80" <= following < b"\xc0":
                break
            piece += opened.read(1)
        yield piece
