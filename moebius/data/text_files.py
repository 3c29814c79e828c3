"""Read a text file as one document, or as several if it is long or the only file of its source."""

import codecs
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

LONGEST_DOCUMENT = 2**20
"""Bytes above which a file is cut into several documents."""
PIECE_BYTES = 2**16
"""Length of the documents that a long file is cut into."""
FEWEST_PIECES = 16
"""Number of documents that a short file is cut into if it is the whole source, so that one of them
can be held out."""
SHORTEST_PIECE = 256
"""Smallest number of bytes in a document that a short file is cut into."""
SNIFFED_BYTES = 8192
"""Bytes at the start of a file in which a zero byte means that the file is binary."""
# The mark of little-endian UTF-32 starts with that of UTF-16, so it need not be listed.
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)

Refuse = Callable[[str], None]
"""Function that is called with the reason when a document cannot be read.

It either raises an error, or it returns and the document is left out."""


def text_pieces(
    file: Path, refuse: Refuse, is_whole_source: bool, pass_over_binary: bool
) -> Iterator[tuple[str, str]]:
    """Yield the text and the origin (file and byte offset) of each document in a text file.

    A file is one document, unless it is larger than 1 MiB or the whole source. Such a file is cut
    after line ends into documents of 64 KiB (or of 1/16 of the file, if that is less). Nothing
    marks documents in it, and uncut it could neither be held out in part nor be tokenized in
    bounded memory. The cuts depend only on the file's bytes, so they are the same on any machine.

    A document that is not UTF-8 is reported to `refuse` with the offset. With `pass_over_binary`,
    a file that looks binary has no documents. Raises OSError.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        if pass_over_binary and _is_binary(opened):
            return
        if size > LONGEST_DOCUMENT or is_whole_source:
            pieces = _cut(opened, max(SHORTEST_PIECE, min(PIECE_BYTES, size // FEWEST_PIECES)))
        else:
            pieces = iter([opened.read()])
        offset = 0
        for piece in pieces:
            text = decode(piece, str(file), offset, refuse)
            if text is not None:
                yield text, f"{file}: byte {offset}" if offset else str(file)
            offset += len(piece)


def decode(data: bytes, name: str, offset: int, refuse: Refuse) -> str | None:
    """Return the text of UTF-8 data, or None if it is invalid and `refuse` did not raise.

    For the message, `name` is the file that the data comes from, and `offset` is where the data
    begins in it.
    """
    # Opening the file as text instead would translate line ends and so change byte offsets.
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        refuse(
            f"{name}: byte offset {offset + error.start} is not UTF-8 (0x{data[error.start]:02x})"
        )
        return None


def _is_binary(opened: BufferedReader) -> bool:
    """Return whether the file looks binary by git's rule, a zero byte near the start.

    UTF-16 text has zero bytes, too, but does not count as binary, so that the user is told that it
    is not read.
    """
    start = opened.read(SNIFFED_BYTES)
    opened.seek(0)
    return b"\0" in start and not start.startswith(WIDE_MARKS)


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
