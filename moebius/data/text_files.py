"""Read a text file as one document, or as several if it is long or the only file of its source."""

from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import cast

from moebius.data.chunk import TEXT_PIECE, Chunk, FilePart
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
LINE_BUFFER = 2**13
"""Bytes that are read at once to find the end of a line somewhere in a file."""


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
    if file.size and not file.format.compressions:
        yield from _parts(file, is_whole_source)
        return
    offset = 0
    try:
        with file.open() as opened:
            piece = opened.read(LONGEST_DOCUMENT + 1)
        if len(piece) <= LONGEST_DOCUMENT and not is_whole_source:
            yield Chunk(TEXT_PIECE, piece, file.name)
            return
        length = _piece_length(len(piece))
        with file.open() as opened:
            while piece := opened.read(length):
                piece += _line_end(opened, length)
                yield Chunk(TEXT_PIECE, piece, file.name, offset)
                offset += len(piece)
    except Exception as error:
        if not is_damage(error):
            raise
        refuse(damage(file, error))


def _parts(file: SourceFile, is_whole_source: bool) -> Iterator[Chunk]:
    """Yield where the same documents are in a file that is not compressed."""
    if file.size <= LONGEST_DOCUMENT and not is_whole_source:
        yield Chunk(TEXT_PIECE, FilePart(file.location, 0, file.size), file.name)
        return
    length = _piece_length(file.size)
    start = 0
    with file.path.open("rb", LINE_BUFFER) as raw:
        opened = cast(BufferedReader, raw)
        while start < file.size:
            opened.seek(start + length)
            stop = min(start + length + len(_line_end(opened, length)), file.size)
            yield Chunk(TEXT_PIECE, FilePart(file.location, start, stop), file.name, start)
            start = stop


def _piece_length(num_bytes: int) -> int:
    """Return the length of the documents that a file of that many bytes is cut into."""
    return max(SHORTEST_PIECE, min(PIECE_BYTES, num_bytes // FEWEST_PIECES))


def piece_text(chunk: Chunk, keeps_mark: bool, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """Yield the text and the origin (file and byte offset) of a document in a text file.

    A byte order mark at the start of a file is left out unless `keeps_mark`. A document that is
    not UTF-8 or has a zero byte is reported to `refuse` with the offset.
    """
    name, offset = chunk.origin, chunk.offset
    data = chunk.raw
    text = decode(data, name, offset, refuse)
    if text is not None and "\0" in text:
        # The file would be passed over as binary, but for its first bytes.
        place = offset + data.index(0)
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


def _line_end(opened: BufferedReader, longest: int) -> bytes:
    """Return what follows up to the end of the line, or `longest` bytes of it.

    A line may go on for gigabytes, so lines are cut too, but not inside a UTF-8 character, which
    has at most 3 continuation bytes.
    """
    end = opened.readline(longest)
    for _ in range(3):
        if not b"\x80" <= opened.peek(1)[:1] < b"\xc0":
            break
        end += opened.read(1)
    return end
