"""A text file as one document, or as many if it is long or all there is."""

import codecs
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

LONGEST_DOCUMENT = 2**20  # bytes
PIECE_BYTES = 2**16
FEWEST_PIECES = 16  # of a short file that is the whole source: enough to hold one out
SHORTEST_PIECE = 256
SNIFFED_BYTES = 8192
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32-LE's starts with UTF-16-LE's


def text_pieces(
    file: Path, refuse: Callable[[str], None], is_whole_source: bool, pass_over_binary: bool
) -> Iterator[tuple[str, str]]:
    """(text, origin) of each document in a text file. Raises OSError.

    A file is one document. One above 1 MiB, or one that is the whole source, is cut after line ends into pieces of 64 KiB
    (of 1/16 of the file if that is less): nothing marks documents in it, and uncut it could neither be held out in part
    nor tokenised in bounded memory. The cuts depend on the file's bytes alone, so they are the same on any machine.
    What is not UTF-8 goes to `refuse` with its offset.
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


def decode(data: bytes, name: str, offset: int, refuse: Callable[[str], None]) -> str | None:
    """UTF-8 that begins at `offset` of what is called `name`, or None after `refuse` returned."""
    # by hand, because a file opened as text would translate line ends and so change the count of bytes
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        refuse(f"{name}: byte offset {offset + error.start} is not UTF-8 (0x{data[error.start]:02x})")
        return None


def _is_binary(opened: BufferedReader) -> bool:
    """git's rule: a zero byte near the start. UTF-16 text has those too, but it is text, so its reader shall be told."""
    start = opened.read(SNIFFED_BYTES)
    opened.seek(0)
    return b"\0" in start and not start.startswith(WIDE_MARKS)


def _cut(opened: BufferedReader, length: int) -> Iterator[bytes]:
    while piece := opened.read(length):
        piece += opened.readline(length)
        # a line may go on for gigabytes: it is cut too, but not inside a character (at most 3 continuation bytes)
        for _ in range(3):
            following = opened.peek(1)[:1]
            if not b"\x80" <= following < b"\xc0":
                break
            piece += opened.read(1)
        yield piece
